"""The presets and the math that `bench.py params` prints, held against transformers, PEFT and published totals."""

import pytest
import torch

from minipeft import PRESETS, Error, accounting
from minipeft.config import SHAPES, T5Shape

LLAMA = ["llama-7b", "llama-13b", "llama-30b", "llama-65b"]


@pytest.mark.parametrize(
    "preset, published",
    [  # Lester et al. 2021 (2104.08691), table 4: total parameters less the prompt's, for a prompt of one token
        ("t5-small", 76_961_664 - 512),
        ("t5-base", 247_578_624 - 768),
        ("t5-large", 783_151_104 - 1_024),
        ("t5-xl", 2_849_759_232 - 2_048),
        ("t5-xxl", 11_135_336_448 - 4_096),
        # less what LoRA added: the line that PEFT printed for Alpaca-LoRA
        ("llama-7b", 6_742_609_920 - 4_194_304),
    ],
)
def test_published_totals(preset, published):
    assert accounting.base_parameters((PRESETS | SHAPES)[preset]) == published


@pytest.mark.parametrize("preset", LLAMA)
def test_llamas_totals_are_those_of_transformers(preset):
    transformers = pytest.importorskip("transformers")
    c = PRESETS[preset]
    sizes = dict(hidden_size=c.n_embd, intermediate_size=c.n_inner, num_attention_heads=c.n_head, rms_norm_eps=c.layer_norm_epsilon)
    config = transformers.LlamaConfig(
        vocab_size=32000, num_hidden_layers=c.n_layer, max_position_embeddings=2048, tie_word_embeddings=False, **sizes
    )
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    assert accounting.base_parameters(c) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("preset", SHAPES)
def test_t5s_totals_are_those_of_transformers(preset):
    transformers = pytest.importorskip("transformers")
    c = SHAPES[preset]
    config = transformers.T5Config(
        vocab_size=c.vocab_size,
        d_model=c.n_embd,
        d_kv=c.head_size,
        d_ff=c.n_inner,
        num_layers=c.n_layer,
        num_heads=c.n_head,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        theirs = transformers.T5ForConditionalGeneration(config)
    tied = theirs.lm_head.weight is theirs.shared.weight  # v1.1's head is a table of its own; transformers 5 builds it tied
    own = theirs.lm_head.weight.numel() if tied else 0
    assert accounting.base_parameters(c) == sum(p.numel() for p in theirs.parameters()) + own


def test_what_means_nothing_on_an_encoder_decoder_is_refused():
    with pytest.raises(Error, match="^'lora' is made of a GPT's blocks: on an encoder-decoder full, hard-prompt, prompt are counted$"):
        accounting.count(SHAPES["t5-small"], "lora")
    with pytest.raises(Error, match="n_layer must be a whole number of at least 1, not 0"):
        T5Shape(n_layer=0, n_head=1, n_embd=8, n_inner=8)
