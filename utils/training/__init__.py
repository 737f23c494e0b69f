"""What a training needs beside the network: optimiser, schedule, checkpoints, logs."""
