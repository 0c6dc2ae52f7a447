"""Multi-head attention, examples first throughout, so that its projections can be recorded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.clipping.capture import Call, Capture
from dither.clipping.rules.broadcast import spread
from dither.clipping.rules.generic import by_vmap
from dither.clipping.rules.registry import register_rule
from dither.clipping.unsupported import UnsupportedError


@register_rule(F.multi_head_attention_forward)
def attention(capture: Capture, call: Call) -> tuple[Tensor, Tensor | None]:
    """The function behind `nn.MultiheadAttention`, said again with linear layers.

    torch's own folds time and examples into one axis, time first, where examples cannot be told
    apart any more.
    """
    given = call.bound()
    if given["query"].ndim != 3:
        raise UnsupportedError("attention without an axis of examples")
    if given["static_k"] is not None or given["static_v"] is not None:
        raise UnsupportedError("attention with static keys")
    return capture.record(attend, given)  # type: ignore[no-any-return]


@register_rule(F.scaled_dot_product_attention)
def biased_attention(capture: Capture, call: Call) -> Tensor:
    """Record what is trainable in the mask: relative position biases, one for all examples."""
    listed = call.named("query key value attn_mask dropout_p is_causal")
    given = {name: value for name, value in listed.items() if value is not None}
    query = given["query"]
    if any(capture.target(given[name]) is not None for name in ("query", "key", "value")):
        return by_vmap(capture, call)
    mask = given["attn_mask"]
    sizes = [1] * (query.ndim - mask.ndim) + list(mask.shape)
    given["attn_mask"] = spread(capture, call, mask, (query.shape[0], *sizes[1:]))
    output: Tensor = call.function(**given)
    return output


def attend(given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return what `torch.nn.functional.multi_head_attention_forward` does, by linear layers.

    Args:
        given: Its arguments by name, defaults filled in; batched, and without static keys.
    """
    heads = given["num_heads"]
    query, key, value = (_split(t, heads) for t in _project(given))
    mask = _mask(given, query, key.shape[2])
    dropout = given["dropout_p"] if given["training"] else 0.0
    weights: Tensor | None = None
    if given["need_weights"]:
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout else weights
        attended = weights @ value
    else:
        causal = given["is_causal"] and given["key_padding_mask"] is None
        attended = F.scaled_dot_product_attention(
            query, key, value, None if causal else mask, dropout, is_causal=causal
        )
    joined = attended.transpose(1, 2).flatten(2)
    output = F.linear(joined, given["out_proj_weight"], given["out_proj_bias"])
    if weights is not None and given["average_attn_weights"]:
        weights = weights.mean(1)
    return output.transpose(0, 1), weights


def _project(given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value ``[rows, time, width]``, extra keys appended."""
    query, key, value = given["query"], given["key"], given["value"]
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    if query is key and key is value and not given["use_separate_proj_weight"]:
        found = F.linear(query.transpose(0, 1), weight, bias).chunk(3, -1)
    else:
        weights = (
            (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
            if given["use_separate_proj_weight"]
            else weight.chunk(3)
        )
        biases = (None, None, None) if bias is None else bias.chunk(3)
        found = tuple(
            F.linear(x.transpose(0, 1), w, b)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
    q, k, v = found
    if given["bias_k"] is not None:
        k = torch.cat([k, given["bias_k"].expand(k.shape[0], 1, -1)], 1)
        v = torch.cat([v, given["bias_v"].expand(v.shape[0], 1, -1)], 1)
    if given["add_zero_attn"]:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    return q, k, v


def _split(tensor: Tensor, heads: int) -> Tensor:
    return tensor.reshape(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _mask(given: dict[str, Any], query: Tensor, keys: int) -> Tensor | None:
    """Return what is added to the scores, ``[rows or 1, heads or 1, time, keys]``."""
    mask, padding = given["attn_mask"], given["key_padding_mask"]
    extra = keys - given["key"].shape[0]
    total: Tensor | None = None
    if mask is not None:
        whole = (
            mask.reshape(query.shape[0], -1, *mask.shape[1:])
            if mask.ndim == 3
            else mask[None, None]
        )
        total = F.pad(_additive(whole, query), (0, extra))
    if padding is not None:
        hidden = F.pad(_additive(padding, query), (0, extra))[:, None, None]
        total = hidden if total is None else total + hidden
    return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    zeros = torch.zeros(mask.shape, dtype=like.dtype, device=mask.device)
    return zeros.masked_fill(mask, -math.inf)
