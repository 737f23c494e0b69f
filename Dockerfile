# hmsa with its command and configurations, on PyTorch's public image.
#
#   docker build --tag hmsa .
#   docker run --gpus all --ipc host --volume "$PWD:/work" hmsa train mine.yaml
#
# --ipc host gives the data loader's processes the shared memory they need.
FROM pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime

COPY . /opt/hmsa

# The image has torch and torchvision already; pip leaves them as they are.
RUN python -m pip install --no-cache-dir /opt/hmsa

WORKDIR /work
ENTRYPOINT ["hmsa"]
CMD ["--help"]
