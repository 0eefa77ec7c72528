# pyright: strict
"""Every public name of minipeft, used as documented: type-checked, and run by test_package.py."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import minipeft
from minipeft import (
    GPT,
    METHODS,
    PRESETS,
    Error,
    GPTConfig,
    Prefix,
    TaskBank,
    accounting,
    adapt,
    fingerprint,
    generate,
    hidden_from_prompt,
    load_adapter,
    prefix_attention,
    prefix_from_hidden,
    prefix_from_prompt,
    prompt_from_tokens,
    vote,
)


def use(folder: Path) -> None:
    """Tune, save, load, convert and generate with a tiny base; `folder` is where the files go."""
    config: GPTConfig = GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=2, n_embd=16)
    base: GPT = GPT(config)
    idx: Tensor = torch.randint(61, (3, 9))
    logits: Tensor = base(idx)

    base.save_pretrained(folder / "base")
    base = GPT.from_pretrained(folder / "base", dtype=torch.float32)
    digest: str = fingerprint(base)

    model = adapt(base, "prefix", num_virtual_tokens=4)
    parameters: Iterator[nn.Parameter] = model.trainable_parameters()
    optimizer = torch.optim.SGD(list(parameters), lr=0.1)
    loss: Tensor = model.loss(idx[:, :-1], idx[:, 1:])
    loss.backward()  # pyright: ignore[reportUnknownMemberType]: torch leaves it without types
    optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    summary: str = model.trainable_summary()
    model.save(folder / "reverse")
    base = model.detach()
    model = load_adapter(base, folder / "reverse")
    answer: Tensor = generate(model, idx, max_new_tokens=3, temperature=0.7, top_k=5, top_p=0.9,
                              stop_token=[0, 1])

    bank: TaskBank = TaskBank(base, {"reverse": folder / "reverse", "again": model})
    mixed: Tensor = bank(idx, tasks=["reverse", None, "again"])
    voted: Tensor = vote(bank, idx[:1], ["reverse", "again"], max_new_tokens=3)

    prompt: Tensor = prompt_from_tokens(base, idx[0, :4])
    prefix: Tensor = prefix_from_hidden(base, hidden_from_prompt(base, prompt))
    same: Tensor = prefix_from_prompt(base, prompt)
    with_prompt: Tensor = base(idx, prompt=prompt)
    with_prefix: Tensor = base(idx, prefix=Prefix.of(prefix))
    q, k, v = torch.randn(3, 1, 2, 9, 8).unbind()
    attended: Tensor = prefix_attention(q, k, v, k[:, :, :4], v[:, :, :4], backend="reference")

    trained: int = accounting.count(config, "prefix", num_virtual_tokens=4).trained
    names: list[str] = [*METHODS, *PRESETS]
    try:
        adapt(base, "no such method")
    except Error as e:
        names.append(str(e))

    for tensor in (logits, mixed, with_prompt, with_prefix):
        assert tensor.shape == (3, 9, 61)
    assert answer.size(0) == 3 and voted.size(0) == 1 and attended.shape == q.shape
    torch.testing.assert_close(prefix, same)
    torch.testing.assert_close(with_prefix, with_prompt)
    assert f"{trained:,}" in summary and len(digest) > 0 and set(METHODS) <= set(names)
    assert set(minipeft.__all__) <= set(dir(minipeft))
