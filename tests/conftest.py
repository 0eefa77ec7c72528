import pytest
import torch

from minipeft import GPT, GPTConfig

torch.set_num_threads(2)


def tiny(position: str = "learned", dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    """A small base whose weights are large enough for every part to matter."""
    torch.manual_seed(seed)
    base = GPT(GPTConfig(vocab_size=97, block_size=48, n_layer=3, n_head=4, n_embd=32, position=position))
    with torch.no_grad():
        for p in base.parameters():
            p.normal_(std=0.3) if p.dim() == 2 else p.add_(0.1 * torch.randn_like(p))
    return base.to(dtype)


@pytest.fixture(params=["learned", "rotary"])
def base(request) -> GPT:
    return tiny(request.param)


@pytest.fixture
def idx() -> torch.Tensor:
    return torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))
