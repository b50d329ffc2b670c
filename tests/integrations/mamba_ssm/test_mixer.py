"""The language model on `Mamba`, its residual blocks, its files, and what raises when called."""

import json

import pytest
import torch
from scan_cases import check
from torch import nn

from vmamba import ConfigError
from vmamba.errors import CheckpointError
from vmamba.integrations.mamba_ssm.modules import generation
from vmamba.integrations.mamba_ssm.modules.block import Block
from vmamba.integrations.mamba_ssm.modules.config_mamba import MambaConfig
from vmamba.integrations.mamba_ssm.modules.hf import load_config_hf, load_state_dict_hf
from vmamba.integrations.mamba_ssm.modules.mamba_simple import Mamba
from vmamba.integrations.mamba_ssm.modules.mixer_seq_simple import MambaLMHeadModel, MixerModel, create_block
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

TINY = {"d_model": 8, "n_layer": 2, "vocab_size": 13, "ssm_cfg": {"d_state": 3}}


def words(length=7):
    return torch.randint(0, 13, (2, length), generator=torch.Generator().manual_seed(0))


def model(**options):
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(**{**TINY, **options}))


def test_keys_and_shapes():
    mixer = {f"mixer.{key}" for key in Mamba(8, d_state=3).state_dict()}
    of_layers = {f"backbone.layers.{i}.{key}" for i in range(2) for key in (*mixer, "norm.weight")}
    state = model().state_dict()
    assert set(state) == {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight", *of_layers}
    assert state["lm_head.weight"].shape == (16, 8)  # 13 words in multiples of 8
    with_mlp = set(model(d_intermediate=20, rms_norm=False).state_dict())
    assert {f"backbone.layers.0.{key}" for key in ("norm2.bias", "mlp.fc1.weight", "mlp.fc2.weight")} <= with_mlp


def test_the_head_is_the_embedding():
    tied = model()
    assert tied.lm_head.weight is tied.backbone.embedding.weight
    loose = model(tie_embeddings=False)
    assert loose.lm_head.weight is not loose.backbone.embedding.weight


def test_both_generations_of_arguments():
    torch.manual_seed(0)
    first = MambaLMHeadModel(**TINY, rms_norm=True, pad_vocab_size_multiple=8)
    assert not first.config.fused_add_norm
    second = model(fused_add_norm=False, residual_in_fp32=False)
    assert torch.equal(first(words()).logits, second(words()).logits)
    with pytest.raises(ConfigError, match="unknown fields: layers; lacking: n_layer; legal: attn_cfg"):
        MambaLMHeadModel(d_model=8, vocab_size=3, layers=2)
    with pytest.raises(ConfigError, match="config is 8; give a MambaConfig"):
        MambaLMHeadModel(8, 2, 13)


@pytest.mark.parametrize("options", [{}, {"rms_norm": False}, {"d_intermediate": 20}], ids=str)
def test_fused_or_not_the_numbers_are_the_same(options):
    fused, plain = model(**options), model(fused_add_norm=False, **options)
    check(plain(words()).logits, fused(words()).logits.double(), 1e-5, "logits")


@pytest.mark.parametrize("options", [{}, {"fused_add_norm": False, "d_intermediate": 20}], ids=str)
def test_decoding_equals_the_whole(options):
    lm, ids = model(**options), words()
    params = generation.InferenceParams(max_seqlen=7, max_batch_size=2)
    logits = []
    with torch.inference_mode():
        for piece in (ids[:, :3], *ids[:, 3:].split(1, dim=1)):
            logits.append(lm(piece, inference_params=params).logits)
            params.seqlen_offset += piece.shape[1]
        whole = lm(ids).logits
    check(torch.cat(logits, dim=1), whole.double(), 1e-5, "logits")
    last = lm(ids, num_last_tokens=2).logits
    assert torch.equal(last, lm(ids).logits[:, -2:])


def test_a_cache_made_beforehand():
    lm, ids = model(), words(2)
    cache = lm.allocate_inference_cache(2, 2)
    assert [[tuple(s.shape) for s in cache[i]] for i in range(2)] == 2 * [[(2, 16, 4), (2, 16, 3)]]
    params = generation.InferenceParams(2, 2, key_value_memory_dict=cache)
    params.seqlen_offset = 1  # from zero states, as at the start
    check(lm(ids[:, :1], inference_params=params).logits, lm(ids[:, :1]).logits.double(), 1e-5, "logits")
    params.lengths_per_sample = torch.ones(2)
    params.reset(5, 3)
    assert (params.max_seqlen, params.max_batch_size, params.seqlen_offset) == (5, 3, 0)
    assert not params.lengths_per_sample.any()


def test_starts():
    torch.manual_seed(0)
    mixer = MixerModel(64, 4, 200, ssm_cfg={"bias": True}, initializer_cfg={"initializer_range": 0.5})
    own = mixer.layers[0].mixer
    assert 0.48 < mixer.embedding.weight.std() < 0.52
    assert not own.in_proj.bias.any()
    assert own.dt_proj.bias.all()
    bound = 128**-0.5 / 4**0.5  # torch's own, over the square root of the layers
    assert 0.9 * bound < own.out_proj.weight.abs().max() <= bound


def test_it_trains():
    lm = model()
    logits = lm(words()).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), words().flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())


def test_files(tmp_path):
    lm = model()
    lm.save_pretrained(tmp_path / "lm")
    other = MambaLMHeadModel.from_pretrained(str(tmp_path / "lm"))
    assert torch.equal(other(words()).logits, lm(words()).logits)
    half = load_state_dict_hf(str(tmp_path / "lm"), dtype=torch.bfloat16)
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    # A file of the first release has fewer fields.
    old = {key: json.loads((tmp_path / "lm/config.json").read_text())[key] for key in (*TINY, "rms_norm")}
    (tmp_path / "lm/config.json").write_text(json.dumps(old))
    assert MambaLMHeadModel.from_pretrained(tmp_path / "lm").config.pad_vocab_size_multiple == 8
    (tmp_path / "lm/config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        load_config_hf(str(tmp_path / "lm"))
    (tmp_path / "lm/pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"cannot read .*pytorch_model\.bin"):
        load_state_dict_hf(str(tmp_path / "lm"))
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_config_hf(str(tmp_path))


def test_a_repository_out_of_reach(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match=r"cannot load config\.json of some/model, which is neither .*no network"):
        load_config_hf("some/model")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="neither a folder here nor a repository"):
        load_config_hf("no such/repository/name")


def test_create_block():
    block = create_block(8, ssm_cfg={"d_state": 3, "layer": "Mamba1"}, rms_norm=True, layer_idx=4, dtype=torch.float64)
    assert isinstance(block, Block)
    assert block.layer_idx == block.mixer.layer_idx == 4
    assert block.norm.weight.dtype == torch.float64
    with pytest.raises(NotProvidedError, match=r"layer 'Mamba3' is not provided .* there are Mamba1, Mamba2"):
        create_block(8, ssm_cfg={"layer": "Mamba3"})
    with pytest.raises(NotProvidedError, match="layer 1 is attention"):
        create_block(8, layer_idx=1, attn_layer_idx=[1])


def test_the_late_block():
    block = Block(8, lambda dim: Mamba(dim, d_state=3), nn.Identity, residual_in_fp32=True)
    assert block.mlp is None
    x = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    block.to(torch.bfloat16)
    y, residual = block(x)
    assert (y.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
    assert len(block.allocate_inference_cache(2, 5)) == 2


@pytest.mark.parametrize("name", sorted(set(generation.__all__) - {"GenerationMixin", "InferenceParams"}))
def test_what_is_not_there_raises_when_called(name):
    function = getattr(generation, name)
    assert function.__name__ == name
    with pytest.raises(
        NotProvidedError, match=f"{name} is not provided by vmamba's stand-in; there is InferenceParams"
    ):
        function(1, two=2)


def test_generate_raises():
    with pytest.raises(NotProvidedError, match="there is InferenceParams"):
        model().generate(words(), max_length=9)
    with pytest.raises(NotImplementedError, match="define it"):
        generation.GenerationMixin().allocate_inference_cache(1, 2)
