"""What a base knows of its adapters: copies, pickles, and adapters that go out of scope."""

import copy
import io
import pickle

import pytest
import torch
from conftest import moved, tiny

from minipeft import Error, adapt


def saved_and_loaded(model):
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded]


def weights(base):
    return {name: t.clone() for name, t in base.state_dict().items()}


def assert_same(base, before):
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())


@pytest.fixture
def base():
    return tiny("learned")


@pytest.fixture
def lora(base):
    base.wte.requires_grad_(False)  # as it was at first
    return moved(adapt(base, "lora", r=2))


def everything(base):
    return {name for name, _ in base.named_parameters()}


def frozen(base):
    return {name for name, p in base.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_attached_to_its_own_base(copied, lora, idx):
    before, logits = weights(lora.base), lora(idx)
    again = copied(lora)
    with pytest.raises(Error, match="full fine-tuning changes the base"):
        adapt(again.base, "full")
    again.merge()
    torch.testing.assert_close(again.base(idx), logits, rtol=0, atol=1e-4)
    assert_same(lora.base, before)
    again.unmerge()
    assert_same(again.base, before)
    assert frozen(again.detach()) == {"wte.weight"}
    assert adapt(again.base, "full") and frozen(lora.base) == everything(lora.base)
    lora.merge()  # the original is attached as before, alone
    assert frozen(lora.detach()) == {"wte.weight"}


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_merged_one_is_merged(copied, lora, idx):
    before = weights(lora.base)
    lora.merge()
    again = copied(lora)
    lora.unmerge()
    assert again.merged and not lora.merged
    with pytest.raises(Error, match="unmerge it first"):
        adapt(again.base, "prefix")
    assert_same(again.detach(), before)
    assert adapt(again.base, "full")


@pytest.mark.parametrize("copied", COPIES)
def test_what_is_copied_together_shares_a_base(copied, lora):
    one, two = copied((lora, adapt(lora.base, "prefix")))
    with pytest.raises(Error, match="detach the others first"):
        one.merge()
    two.detach()
    one.merge()
    assert frozen(one.detach()) == {"wte.weight"}


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_the_base_alone_is_free(copied, lora):
    base = copied(lora.base)
    assert frozen(adapt(base, "full").detach()) == {"wte.weight"}
    assert frozen(lora.base) == everything(lora.base)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_merged_base_keeps_the_change(copied, lora, idx):
    lora.merge()
    base = copied(lora.base)
    assert torch.equal(base(idx), lora.base(idx)) and adapt(base, "full").detach() is base
    assert torch.equal(base(idx), lora.base(idx))


def test_an_attachment_that_is_refused_leaves_the_base_as_it_was(base):
    base.to(torch.bfloat16)
    lora, before = adapt(base, "lora", r=2), weights(base)
    for names in ("full", ["full", "lora"]):
        with pytest.raises(Error, match="full fine-tuning"):
            adapt(base, names)
        assert_same(base, before)
        assert base.wte.weight.dtype == torch.bfloat16
    assert adapt(lora.detach(), "full").base.wte.weight.dtype == torch.float32  # small steps are not rounded away


@pytest.mark.parametrize("copied", [None, *COPIES])
def test_a_merged_adapter_takes_its_change_along(copied, base):
    before = weights(base)
    model = moved(adapt(base, "lora", r=2))
    model.merge()
    if copied:
        model = copied(model)
        base = model.base
    assert any(not torch.equal(t, before[name]) for name, t in base.state_dict().items())
    del model
    assert_same(base, before)
    assert adapt(base, "full").detach() is base


def test_a_deleted_adapter_gives_the_base_back_as_a_detached_one_does(base):
    adapt(base, "prefix", num_virtual_tokens=2).compile_blocks()
    assert all(p.requires_grad for p in base.parameters()) and not base.through_compile
    base.gradient_checkpointing()
    base.requires_grad_(False)
    adapt(base, "lora").detach()
    assert base.checkpointed and not any(p.requires_grad for p in base.parameters())


def test_an_adapter_cannot_be_saved_while_another_one_is_merged(base, tmp_path):
    prompt = adapt(base, "prompt", num_virtual_tokens=2)
    prompt.detach()
    other = moved(adapt(base, "lora"))
    other.merge()
    with pytest.raises(Error, match="an adapter is merged into this base: unmerge it first"):
        prompt.save(tmp_path)
    assert not any(tmp_path.iterdir())


def test_two_names_of_one_adapter_are_one(lora):
    before, other = weights(lora.base), copy.copy(lora)
    other.merge()
    assert lora.merged
    del other
    assert lora.merged
    lora.unmerge()
    assert_same(lora.detach(), before)


def test_another_model_with_token_embeddings_is_no_base():
    transformers = pytest.importorskip("transformers")
    other = transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
    with pytest.raises(Error, match="the base must be a GPT, as GPT.from_pretrained.. opens it, not <GPT2Model>"):
        adapt(other, "lora")
