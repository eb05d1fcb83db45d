"""The ops at one size each: what they are given, what plain PyTorch makes of the same, and what work there is.

`plain` is what one would write without the op, in whatever dtype it is given, so that in fp64 it is the truth. FLOPs
are those of the products that must be made, bytes those that must be read and written once. Shapes: T tokens, H width,
V vocabulary, S segments, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

import synpro_kernels as sk

Inputs = Mapping[str, Tensor]
Run = Callable[[Inputs], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What all cases are cut from."""

    tokens: int
    width: int
    ffn: int
    vocab: int
    rows: int
    segments: int = 8
    product: int | None = None
    """Side of the product that tells the machine's rate; None: one that is large for the device."""


CPU_SIZES = Sizes(tokens=1024, width=512, ffn=1408, vocab=8192, rows=32)
CUDA_SIZES = Sizes(tokens=8192, width=2048, ffn=8192, vocab=100352, rows=256, segments=16)
SIZES = {
    # No tile divides them; right or wrong shows, and no time can be read from them.
    "tiny": Sizes(tokens=72, width=64, ffn=96, vocab=301, rows=16, segments=3, product=64),
    "cpu": CPU_SIZES,
    "cuda": CUDA_SIZES,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op. limit_flops and limit_bytes: the least work; results are compared entry by entry."""

    name: str
    inputs: Inputs
    ours: Run
    plain: Run
    limit_flops: float
    limit_bytes: float


def cases(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """All of them, each made when it is its turn, for a GPU could not hold them all."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * std).to(dtype)

    yield from _of_the_output_layer(sizes, normal, generator)
    yield from _of_influence(sizes, normal)
    yield from _of_training(sizes, normal)
    yield from _of_decoding(sizes, normal, generator)
    one = normal(sizes.width, sizes.ffn)
    yield Case(
        name="orthogonalize",
        inputs={"x": one},
        ours=lambda i: (sk.orthogonalize(i["x"]),),
        plain=lambda i: (_newton_schulz(i["x"]),),
        # A step's Gram matrix and its square, of which half is the other half, and a whole product.
        limit_flops=5 * (sizes.width**2 * sizes.ffn + sizes.width**3 + 2 * sizes.width**2 * sizes.ffn),
        limit_bytes=2 * _bytes(one),
    )


def _of_the_output_layer(sizes: Sizes, normal: Callable[..., Tensor], generator: torch.Generator) -> Iterator[Case]:
    hidden, weight = normal(sizes.tokens, sizes.width), normal(sizes.vocab, sizes.width, std=3 / sizes.width**0.5)
    target = torch.randint(sizes.vocab, (sizes.tokens,), generator=generator, device=hidden.device)
    product = 2.0 * sizes.tokens * sizes.width * sizes.vocab
    layer = {"hidden": hidden, "weight": weight, "target": target}
    held = _bytes(hidden, weight)
    yield Case(
        name="linear_logprob, forward",
        inputs=layer,
        ours=lambda i: (sk.linear_logprob(i["hidden"], i["weight"], i["target"]).logprob,),
        plain=lambda i: (-_cross_entropies(i["hidden"], i["weight"], i["target"]),),
        limit_flops=product,
        limit_bytes=held,
    )
    yield Case(
        name="linear_logprob, with gradients",
        inputs=layer,
        ours=lambda i: _with_gradients(
            lambda hidden, weight: -sk.linear_logprob(hidden, weight, i["target"]).logprob.mean(),
            i["hidden"], i["weight"],
        ),
        plain=lambda i: _with_gradients(
            lambda hidden, weight: _cross_entropies(hidden, weight, i["target"]).mean(), i["hidden"], i["weight"]
        ),
        limit_flops=3 * product,
        limit_bytes=2 * held,
    )  # fmt: skip
    yield Case(
        name="linear_cross_entropy, with gradients",
        inputs=layer,
        ours=lambda i: _with_gradients(
            lambda hidden, weight: sk.linear_cross_entropy(hidden, weight, i["target"]).loss, i["hidden"], i["weight"]
        ),
        plain=lambda i: _with_gradients(
            lambda hidden, weight: _cross_entropies(hidden, weight, i["target"]).mean(), i["hidden"], i["weight"]
        ),
        limit_flops=3 * product,
        limit_bytes=2 * held,
    )
    yield _policy(layer, normal, product, held)
    yield _distill(layer, normal, product, held)


def _policy(layer: Inputs, normal: Callable[..., Tensor], product: float, held_bytes: float) -> Case:
    """Tokens drawn by a policy a little behind: some ratios are beyond the clip, and their tokens have no gradient.

    Most advantages are above 0, for a sum that cancels would have no digits to be held to.
    """
    with torch.no_grad():
        behaviour = -_cross_entropies(layer["hidden"], layer["weight"], layer["target"])
        behaviour = behaviour + 0.1 * normal(len(behaviour)).float()
    policy = {
        "behaviour": behaviour,
        "advantage": 1 + normal(len(behaviour)).float(),
        "weight_T": torch.ones_like(behaviour),
    }
    objective = sk.PolicyObjective()

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        tokens = sk.PolicyTokens(behaviour=i["behaviour"], advantage=i["advantage"], weight=i["weight_T"])
        return _with_gradients(
            lambda hidden, weight: (
                sk.linear_policy_loss(hidden, weight, i["target"], tokens=tokens, objective=objective).objective
            ),
            i["hidden"], i["weight"],
        )  # fmt: skip

    def plain(i: Inputs) -> tuple[Tensor, ...]:
        def loss(hidden: Tensor, weight: Tensor) -> Tensor:
            ratio = torch.exp(-_cross_entropies(hidden, weight, i["target"]) - i["behaviour"])
            held = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
            return -(i["weight_T"] * torch.minimum(ratio * i["advantage"], held * i["advantage"])).sum()

        return _with_gradients(loss, i["hidden"], i["weight"])

    return Case(
        name="linear_policy_loss, with gradients",
        inputs={**layer, **policy},
        ours=ours,
        plain=plain,
        limit_flops=3 * product,
        limit_bytes=2 * held_bytes,
    )


def _distill(layer: Inputs, normal: Callable[..., Tensor], product: float, held_bytes: float) -> Case:
    """A teacher as large as the student, and half of the loss from it."""
    tokens, width = layer["hidden"].shape
    inputs = {**layer, "teacher": normal(tokens, width), "of_teacher": normal(len(layer["weight"]), width, std=0.1)}

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        teachers = [sk.Teacher(i["teacher"], i["of_teacher"])]
        return _with_gradients(
            lambda hidden, weight: sk.linear_distill(hidden, weight, i["target"], teachers=teachers).loss,
            i["hidden"], i["weight"],
        )  # fmt: skip

    def plain(i: Inputs) -> tuple[Tensor, ...]:
        def loss(hidden: Tensor, weight: Tensor) -> Tensor:
            logits = (hidden @ weight.T).to(_wide(hidden))
            with torch.no_grad():
                taught = (i["teacher"] @ i["of_teacher"].T).to(_wide(hidden)).softmax(-1)
            divergence = F.kl_div(logits.log_softmax(-1), taught, reduction="sum")
            return 0.5 * F.cross_entropy(logits, i["target"], reduction="sum") + 0.5 * divergence

        return _with_gradients(loss, i["hidden"], i["weight"])

    return Case(
        name="linear_distill, with gradients", inputs=inputs, ours=ours, plain=plain,
        limit_flops=4 * product, limit_bytes=3 * held_bytes,
    )  # fmt: skip


def _of_influence(sizes: Sizes, normal: Callable[..., Tensor]) -> Iterator[Case]:
    x, grad, direction = (
        normal(sizes.tokens, sizes.width),
        normal(sizes.tokens, sizes.ffn),
        normal(sizes.ffn, sizes.width),
    )
    ids = torch.arange(sizes.tokens, device=x.device) * sizes.segments // sizes.tokens
    count, product = sizes.segments, 2.0 * sizes.tokens * sizes.width * sizes.ffn
    edges = [at * sizes.tokens // count for at in range(count + 1)]
    inputs = {"x": x, "grad": grad, "direction": direction, "ids": ids}

    def dots(i: Inputs) -> tuple[Tensor, ...]:
        tokens = ((i["x"] @ i["direction"].T).to(_wide(i["x"])) * i["grad"]).sum(-1)
        return (tokens.new_zeros(count).index_add(0, i["ids"], tokens),)

    def gradients(i: Inputs) -> list[Tensor]:
        wide = _wide(i["x"])
        return [(i["grad"][a:b].T @ i["x"][a:b]).to(wide) for a, b in pairwise(edges)]

    def pairs(i: Inputs) -> tuple[Tensor, ...]:
        flat = torch.stack([one.flatten() for one in gradients(i)])
        return (flat @ flat.T,)

    def prefix(i: Inputs) -> tuple[Tensor, ...]:
        each = gradients(i)
        return torch.stack([(one * i["direction"]).sum() for one in each]), torch.stack(each).sum(0)

    yield Case(
        name="grad_dot", inputs=inputs, plain=dots, limit_flops=product, limit_bytes=_bytes(x, grad, direction),
        ours=lambda i: (sk.grad_dot(i["x"], i["grad"], i["direction"], i["ids"], segments=count),),
    )  # fmt: skip
    # By tokens, <x_s, x_t> <g_s, g_t> summed over pairs, each pair once.
    yield Case(
        name="pairwise_grad_dot", inputs=inputs, plain=pairs, limit_bytes=_bytes(x, grad),
        limit_flops=min(product, float(sizes.tokens**2 * (sizes.width + sizes.ffn))),
        ours=lambda i: (sk.pairwise_grad_dot(i["x"], i["grad"], i["ids"], segments=count),),
    )  # fmt: skip
    yield Case(
        name="grad_dot_prefix", inputs=inputs, plain=prefix, limit_flops=product,
        limit_bytes=_bytes(x, grad, direction) + 4.0 * sizes.width * sizes.ffn,
        ours=lambda i: sk.grad_dot_prefix(i["x"], i["grad"], i["direction"], edges),
    )  # fmt: skip


def _of_training(sizes: Sizes, normal: Callable[..., Tensor]) -> Iterator[Case]:
    x, norm = normal(sizes.tokens, sizes.width), normal(sizes.width)
    gate_up = normal(sizes.tokens, 2 * sizes.ffn)
    upon_x, upon_gated = normal(sizes.tokens, sizes.width), normal(sizes.tokens, sizes.ffn)

    def normed(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
        return lambda i: _through(function, i["upon"], i["x"], i["norm"])

    def gated(function: Callable[[Tensor], Tensor]) -> Run:
        return lambda i: _through(function, i["upon"], i["gate_up"])

    yield Case(
        name="rms_norm, with gradients", inputs={"x": x, "norm": norm, "upon": upon_x},
        limit_flops=0.0, limit_bytes=5 * _bytes(x),
        ours=normed(lambda x, norm: sk.rms_norm(x, norm, 1e-6)),
        plain=normed(lambda x, norm: F.rms_norm(x, x.shape[-1:], norm, 1e-6)),
    )  # fmt: skip
    yield Case(
        name="swiglu, with gradients", inputs={"gate_up": gate_up, "upon": upon_gated},
        limit_flops=0.0, limit_bytes=4 * _bytes(gate_up),
        ours=gated(sk.swiglu), plain=gated(lambda both: F.silu(both.chunk(2, -1)[0]) * both.chunk(2, -1)[1]),
    )  # fmt: skip

    heads = x.view(len(x), 1, -1, min(64, sizes.width // 2))
    half = normal(len(x), 1, 1, heads.shape[-1] // 2).float()
    angle = torch.cat((half, half), -1)

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * angle.cos().to(x.dtype) + torch.cat((-second, first), -1) * angle.sin().to(x.dtype)

    yield Case(
        name="rotary, with gradient", inputs={"heads": heads, "upon": upon_x.view_as(heads)},
        limit_flops=0.0, limit_bytes=4 * _bytes(heads),
        ours=lambda i: _through(lambda x: sk.rotary(x, angle), i["upon"], i["heads"]),
        plain=lambda i: _through(turned, i["upon"], i["heads"]),
    )  # fmt: skip


def _of_decoding(sizes: Sizes, normal: Callable[..., Tensor], generator: torch.Generator) -> Iterator[Case]:
    x, weight = normal(sizes.rows, sizes.width), normal(sizes.ffn, sizes.width)
    yield Case(
        name="skinny_linear", inputs={"x": x, "weight": weight},
        ours=lambda i: (sk.skinny_linear(i["x"], i["weight"]),), plain=lambda i: (F.linear(i["x"], i["weight"]),),
        limit_flops=2.0 * sizes.rows * sizes.width * sizes.ffn, limit_bytes=_bytes(x, weight),
    )  # fmt: skip
    norm, gate_up = normal(sizes.width), normal(sizes.rows, 2 * sizes.ffn)
    yield Case(
        name="rms_norm", inputs={"x": x, "norm": norm}, limit_flops=0.0, limit_bytes=2 * _bytes(x) + _bytes(norm),
        ours=lambda i: (sk.rms_norm(i["x"], i["norm"], 1e-6),),
        plain=lambda i: (F.rms_norm(i["x"], i["x"].shape[-1:], i["norm"], 1e-6),),
    )  # fmt: skip

    def gated(i: Inputs) -> tuple[Tensor, ...]:
        gate, up = i["gate_up"].chunk(2, -1)
        return (F.silu(gate) * up,)

    yield Case(
        name="swiglu", inputs={"gate_up": gate_up}, ours=lambda i: (sk.swiglu(i["gate_up"]),), plain=gated,
        limit_flops=0.0, limit_bytes=1.5 * _bytes(gate_up),
    )  # fmt: skip
    yield _attention_of_groups(sizes, normal)
    yield _stored_heads(sizes, normal)
    logits = normal(sizes.rows, sizes.vocab, std=3.0).float()
    uniform = torch.rand(sizes.rows, generator=generator, device=x.device, dtype=torch.float64)

    def drawn(i: Inputs) -> tuple[Tensor, ...]:
        p = torch.softmax(i["logits"].double(), -1)
        chosen = torch.searchsorted(p.cumsum(-1), i["uniform"].double()[:, None], right=True).clamp(max=p.shape[-1] - 1)
        return (p.gather(-1, chosen)[:, 0].log().to(i["logits"].dtype),)

    yield Case(
        name="draw_tokens", inputs={"logits": logits, "uniform": uniform}, plain=drawn,
        ours=lambda i: (sk.draw_tokens(i["logits"], i["uniform"], 1.0)[1],),
        limit_flops=0.0, limit_bytes=_bytes(logits),
    )  # fmt: skip


def _attention_of_groups(sizes: Sizes, normal: Callable[..., Tensor]) -> Case:
    """Groups of eight completions behind prompts of eight pages, each a page long itself; all pages are full."""
    page, of_prompt, members, head = 64, 8, 8, 64
    heads, groups = sizes.width // head, sizes.rows // members
    count = groups * of_prompt + sizes.rows
    query = normal(sizes.rows, heads, 1, head)
    key, value = normal(count, heads, page, head), normal(count, heads, page, head)
    every = torch.arange(sizes.rows, device=query.device)
    # Behind the last page of each stands the number of any page.
    prompt_pages = F.pad(torch.arange(groups * of_prompt, device=query.device).view(groups, of_prompt), (0, 1))
    new_pages = F.pad((groups * of_prompt + every)[:, None], (0, 1))
    rows = sk.DecodeRows(
        row_of_place=every, place_of_row_B=every,
        prompt_length_G=every.new_full((groups,), of_prompt * page), prompt_page_GX=prompt_pages,
        new_length_B=every.new_full((sizes.rows,), page), new_page_SY=new_pages,
        prompt_longest=of_prompt * page, new_longest=page, ragged_prompts=False, ragged_new=False,
    )  # fmt: skip

    def plain(i: Inputs) -> tuple[Tensor, ...]:
        def of_rows(pages: Tensor) -> Tensor:
            prompts = pages[prompt_pages[:, :-1]].repeat_interleave(members, 0)
            return torch.cat((prompts, pages[new_pages[:, :-1]]), 1).transpose(1, 2).flatten(2, 3)

        return (F.scaled_dot_product_attention(i["query"], of_rows(i["key"]), of_rows(i["value"])),)

    return Case(
        name="decode_attention", inputs={"query": query, "key": key, "value": value}, plain=plain,
        ours=lambda i: (sk.decode_attention(i["query"], i["key"], i["value"], rows),),
        limit_flops=4.0 * sizes.rows * sizes.width * (of_prompt + 1) * page, limit_bytes=_bytes(key, value),
    )  # fmt: skip


def _stored_heads(sizes: Sizes, normal: Callable[..., Tensor]) -> Case:
    """A row's product becomes queries, and a key and a value at a place of their own in pages of 64."""
    page, head = 64, 64
    heads, count = sizes.width // head, -(-sizes.rows // page)
    angle = normal(sizes.rows, head // 2).float().repeat(1, 2)
    inputs = {
        "mixed": normal(sizes.rows, 3 * sizes.width), "cos": angle.cos(), "sin": angle.sin(),
        "keys": normal(count, heads, page, head), "values": normal(count, heads, page, head),
    }  # fmt: skip
    row = torch.arange(sizes.rows, device=angle.device)

    def ours(i: Inputs) -> tuple[Tensor, ...]:
        query = sk.store_heads(
            i["mixed"], i["cos"], i["sin"], i["keys"], i["values"], row // page, row % page, norm=None
        )
        return query, i["keys"], i["values"]

    def plain(i: Inputs) -> tuple[Tensor, ...]:
        query, key, value = i["mixed"].unflatten(-1, (heads, 3, head)).unbind(2)
        first, second = torch.stack((query, key)).to(_wide(i["mixed"])).chunk(2, -1)
        cos, sin = i["cos"][:, None], i["sin"][:, None]
        query, key = torch.cat((first, second), -1) * cos + torch.cat((-second, first), -1) * sin
        keys, values = i["keys"].clone(), i["values"].clone()
        keys[row // page, :, row % page], values[row // page, :, row % page] = key.to(keys.dtype), value
        return query[:, :, None].to(i["mixed"].dtype), keys, values

    return Case(
        name="store_heads", inputs=inputs, ours=ours, plain=plain, limit_flops=0.0,
        limit_bytes=2 * _bytes(inputs["mixed"]) + _bytes(inputs["cos"], inputs["sin"]),
    )  # fmt: skip


# ---- plain PyTorch ---------------------------------------------------------------------------------------------------


def _cross_entropies(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logits = hidden @ weight.T
    return F.cross_entropy(logits.to(_wide(hidden)), target, reduction="none")


def _with_gradients(loss: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        value = loss(*leaves)
        value.backward()
    return (value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))


def _through(function: Callable[..., Tensor], upon: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What a function makes of tensors, and their gradients under a given one of its result."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        out = function(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, upon))


def _newton_schulz(x: Tensor) -> Tensor:
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _bytes(*tensors: Tensor) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
