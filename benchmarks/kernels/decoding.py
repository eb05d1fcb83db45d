"""The ops of a decoding step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import synpro_kernels as sk
from benchmarks.kernels.case import Case, Inputs, Normal, Sizes, bytes_of, wide


def of_decoding(sizes: Sizes, normal: Normal, generator: torch.Generator) -> Iterator[Case]:
    """Of as many rows as the sizes say."""
    x, weight = normal(sizes.rows, sizes.width), normal(sizes.ffn, sizes.width)
    yield Case(
        name="skinny_linear", inputs={"x": x, "weight": weight},
        ours=lambda i: (sk.skinny_linear(i["x"], i["weight"]),), plain=lambda i: (F.linear(i["x"], i["weight"]),),
        limit_flops=2.0 * sizes.rows * sizes.width * sizes.ffn, limit_bytes=bytes_of(x, weight),
    )  # fmt: skip
    norm, gate_up = normal(sizes.width), normal(sizes.rows, 2 * sizes.ffn)
    yield Case(
        name="rms_norm", inputs={"x": x, "norm": norm}, limit_flops=0.0, limit_bytes=2 * bytes_of(x) + bytes_of(norm),
        ours=lambda i: (sk.rms_norm(i["x"], i["norm"], 1e-6),),
        plain=lambda i: (F.rms_norm(i["x"], i["x"].shape[-1:], i["norm"], 1e-6),),
    )  # fmt: skip

    def gated(i: Inputs) -> tuple[Tensor, ...]:
        gate, up = i["gate_up"].chunk(2, -1)
        return (F.silu(gate) * up,)

    yield Case(
        name="swiglu", inputs={"gate_up": gate_up}, ours=lambda i: (sk.swiglu(i["gate_up"]),), plain=gated,
        limit_flops=0.0, limit_bytes=1.5 * bytes_of(gate_up),
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
        limit_flops=0.0, limit_bytes=bytes_of(logits),
    )  # fmt: skip


def _attention_of_groups(sizes: Sizes, normal: Normal) -> Case:
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
        limit_flops=4.0 * sizes.rows * sizes.width * (of_prompt + 1) * page, limit_bytes=bytes_of(key, value),
    )  # fmt: skip


def _stored_heads(sizes: Sizes, normal: Normal) -> Case:
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
        first, second = torch.stack((query, key)).to(wide(i["mixed"])).chunk(2, -1)
        cos, sin = i["cos"][:, None], i["sin"][:, None]
        query, key = torch.cat((first, second), -1) * cos + torch.cat((-second, first), -1) * sin
        keys, values = i["keys"].clone(), i["values"].clone()
        keys[row // page, :, row % page], values[row // page, :, row % page] = key.to(keys.dtype), value
        return query[:, :, None].to(i["mixed"].dtype), keys, values

    return Case(
        name="store_heads", inputs=inputs, ours=ours, plain=plain, limit_flops=0.0,
        limit_bytes=2 * bytes_of(inputs["mixed"]) + bytes_of(inputs["cos"], inputs["sin"]),
    )  # fmt: skip
