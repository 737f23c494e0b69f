"""The model of `model.wrap`: built by a function of any library, with attention attached to it."""

from __future__ import annotations

from torch import nn

from hmsa.network import AttachedAttention, ModelError, attach_attention, load_plain_weights
from hmsa.utils.config import Config
from hmsa.utils.imported import called, imported_callable

BUILDER = "model.wrap.builder"


def wrapped_model(config: Config, *, num_classes: int) -> AttachedAttention:
    """Build somebody's model, fill it with its weights, and attach attention to it.

    Raises:
        UserError: there is no such function, it fails or gives no model, the weights do not fit,
            attention cannot be attached, or the model has other than `num_classes` classes.
    """
    section, wrap = config.model, config.model.wrap
    assert wrap is not None
    function = imported_callable(wrap.builder, key=BUILDER)
    model = called(function, key=BUILDER, reference=wrap.builder, **wrap.arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{BUILDER}: {wrap.builder!r} gives a {type(model).__name__}, no torch.nn.Module: name "
            "a function that returns the model."
        )

    if wrap.weights is not None:
        load_plain_weights(model, wrap.weights)
    attached = attach_attention(
        model,
        features=wrap.features,
        train_scales=section.train_scales,
        multiple_of=wrap.multiple_of,
        attention_channels=section.attention_channels,
        attention_dropout=section.attention_dropout,
        attention_reads_scales=section.attention_reads_scales,
    )
    if attached.num_classes != num_classes:
        raise ModelError(
            f"{BUILDER}: {wrap.builder!r} gives logits for {attached.num_classes} classes where "
            f"the data set has {num_classes}: say so in model.wrap.arguments, or choose the data "
            "set that the model was trained for."
        )
    return attached
