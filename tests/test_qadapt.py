"""Q-Adapt's network: parity, exact sizes, what is trained, and what its parts do to the base."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qmamba.errors import BackendError, CheckpointError, HubError
from qmamba.models import create_model, get_architecture

pytest.importorskip("transformers", reason="q-adapt needs transformers: pip install 'qmamba[explain]'")
pytest.importorskip("peft", reason="q-adapt needs peft: pip install 'qmamba[explain]'")

from qmamba.checkpoints import load_checkpoint, read_config
from qmamba.checkpoints.bases import load_bases
from qmamba.models.capabilities import IMAGE
from qmamba.models.qadapt import is_stored
from qmamba.models.qadapt.generator import Generator
from qmamba.models.qadapt.lmm import visual_features
from qmamba.models.qadapt.prompter import Prompter
from tiny_lmm import (
    BASES,
    LLAVA,
    TINY,
    bunny,
    legacy,
    offline_cache,
    plain_lmm,
    take_base,
    tiny_network,
    write_checkpoint,
)

ORACLE = Path(__file__).with_name("data") / "qadapt_tiny.safetensors"
GENERATOR = {"proj.": "project.", "ln.": "norm.", "deproj.": "out.", "embeddings.": "qformer.embeddings."}
PROMPTER = {
    "self_attn": "attention", "linear1": "gate_in", "linear2": "gate_out", "norm1": "gate_norm",
    "norm2": "norm",
}  # fmt: skip


def published(name: str) -> str:
    """Return our name of a tensor of the oracle's generator."""
    name = name.replace("attention.self.", "attention.attention.")
    name = name.replace("embeddings.LayerNorm", "embeddings.layernorm")
    for theirs, ours in {**GENERATOR, "encoder.": "qformer.encoder."}.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise AssertionError(name)


@pytest.fixture(scope="module")
def oracle() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(ORACLE)


def inputs(count: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return images, text with places for four visual tokens, and an instruction for each image."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 63, (count, 9), generator=g)
    tokens[:, 2:6] = IMAGE
    return {
        "images": torch.randn(count, 3, 28, 28, generator=g), "tokens": tokens,
        "instructions": torch.randint(4, 40, (count, 6), generator=g),
        "instruction_mask": torch.ones(count, 6, dtype=torch.int64), "owners": torch.arange(count),
    }  # fmt: skip


# Parity


def test_the_generator_is_the_published_one(oracle: dict[str, torch.Tensor]) -> None:
    qformer = {**TINY["qformer"], "vocab_size": 50}
    generator = Generator(20, 5, qformer).eval()
    prompter = "w.prompter."
    state = {
        published(name.removeprefix("w.")): tensor
        for name, tensor in oracle.items()
        if name.startswith("w.") and not name.startswith(prompter) and "position_ids" not in name
    }
    generator.load_state_dict({**state, "queries": oracle["query"]})
    queries = generator(oracle["vis"], oracle["ids"], oracle["att"])
    torch.testing.assert_close(queries, oracle["text_queries"], atol=1e-5, rtol=0)
    generator.keep_first_patch = True
    assert (generator(oracle["vis"], oracle["ids"], oracle["att"]) - queries).abs().max() > 1e-3


def test_the_prompter_is_the_published_one(oracle: dict[str, torch.Tensor]) -> None:
    prompter, begin = Prompter(20, 16).eval(), "w.prompter."
    state = {}
    for name, tensor in oracle.items():
        if name.startswith(begin):
            part, _, rest = name.removeprefix(begin).partition(".")
            state[f"{PROMPTER[part]}.{rest}"] = tensor
    prompter.load_state_dict(state)
    prompt = prompter(oracle["vis"], oracle["text_queries"])
    torch.testing.assert_close(prompt, oracle["prompter_out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(oracle["vis"] + 0.1 * prompt, oracle["fused"], atol=1e-5, rtol=0)


# Sizes


@pytest.fixture(scope="module")
def published_sizes() -> dict[int, Any]:
    with torch.device("meta"):
        return {stage: create_model("q-adapt", stage=stage) for stage in (1, 2)}


def counted(network: Any, *parts: str) -> int:
    return sum(p.numel() for name, p in network.trained() if name.startswith(parts))


def test_stage_1_trains_lora_and_the_projector(published_sizes: dict[int, Any]) -> None:
    network = published_sizes[1]
    assert counted(network, "lmm.model.language_model.") == 188_743_680
    assert counted(network, "lmm.model.multi_modal_projector.") == 9_507_840
    assert counted(network, "") == 188_743_680 + 9_507_840


def test_stage_2_trains_what_the_paper_counts(published_sizes: dict[int, Any]) -> None:
    network = published_sizes[2]
    parts = {
        "generator.qformer.": 20_081_664, "prompter.": 10_042_625, "lmm.": 9_507_840,
        "generator.project.": 1_623_424, "generator.out.": 885_888, "generator.norm.": 2_816,
        "generator.queries": 24_576,
    }  # fmt: skip
    assert {part: counted(network, part) for part in parts} == parts
    assert counted(network, "") == sum(parts.values()) == 42_168_833


def test_base_and_projector_are_as_large_as_the_published_files(published_sizes: dict[int, Any]) -> None:
    network = published_sizes[2]
    base = [p for name, p in network.named_parameters() if not is_stored(name) or "projector" in name]
    norm = 2 * 1152  # after the vision tower's last block, which is not used
    published = 2 * (sum(p.numel() for p in base) + norm)  # float16
    assert published == 6_364_609_838
    assert round(published / 1e9, 2) == round(4.99 + 1.37, 2)  # the two files, as the Hub lists them


def test_the_sizes_of_the_documentation(published_sizes: dict[int, Any]) -> None:
    parameters = dict(published_sizes[2].named_parameters())
    assert sum(p.numel() for name, p in parameters.items() if not is_stored(name)) == 3_172_794_775
    assert sum(p.numel() for name, p in parameters.items() if is_stored(name)) == 396_491_009
    weights = [p for name, p in parameters.items() if name.endswith("base_layer.weight")]
    assert sum(p.numel() for p in weights) == 2_516_582_400 and sum(len(p) for p in weights) == 737_280
    qformer = [
        p for name, p in published_sizes[2].generator.qformer.named_parameters() if "cross" not in name
    ]
    assert sum(p.numel() for p in qformer) == 165_578_496


def test_constants_are_there_on_the_device_meta(published_sizes: dict[int, Any]) -> None:
    network = published_sizes[2]
    assert not any(buffer.is_meta for buffer in network.buffers())
    frequencies = network.lmm.model.language_model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 10000 ** (-torch.arange(0, 32, 2) / 32))
    assert network.image_tokens == 729 and network.input_size == (384, 384)


# What is trained


def test_the_exact_trained_names_of_stage_1() -> None:
    names = {name for name, p in tiny_network(stage=1).named_parameters() if p.requires_grad}
    layers = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "dense")] + [
        "mlp.fc1",
        "mlp.fc2",
    ]
    expected = {
        f"lmm.model.language_model.layers.{i}.{layer}.lora_{half}.default.weight"
        for i in range(2) for layer in layers for half in "AB"
    }  # fmt: skip
    assert names == expected | projector_names()


def projector_names() -> set[str]:
    return {
        f"lmm.model.multi_modal_projector.linear_{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")
    }


def test_the_exact_trained_names_of_stage_2() -> None:
    names = {name for name, p in tiny_network().named_parameters() if p.requires_grad}
    cross = {
        f"generator.qformer.encoder.layer.{i}.crossattention.{part}.{leaf}"
        for i in (0, 2)
        for part in (
            "attention.query",
            "attention.key",
            "attention.value",
            "output.dense",
            "output.LayerNorm",
        )
        for leaf in ("weight", "bias")
    }
    own = {f"generator.{part}.{leaf}" for part in ("project", "norm", "out") for leaf in ("weight", "bias")}
    prompter = {f"prompter.{name}" for name, _ in Prompter(32, 16).named_parameters()}
    assert names == cross | own | prompter | {"generator.queries"} | projector_names()


def test_the_vision_tower_has_lora_if_asked() -> None:
    network = tiny_network(stage=1, lora_vision=True)
    assert any(name.startswith("lmm.model.vision_tower.encoder") for name, _ in network.trained())
    assert network.lr_scales() == dict.fromkeys(projector_names(), 0.1)


# What the parts do


def test_without_a_prompt_it_is_the_base_bit_for_bit() -> None:
    lmm, given = plain_lmm(), inputs()
    network = create_model("q-adapt", **{**TINY, "prompt_scale": 0.0}).eval()  # LoRA's update starts at zero
    take_base(network, lmm)
    tokens = given["tokens"].masked_fill(given["tokens"] == IMAGE, 63)
    with torch.no_grad():
        expected = lmm(input_ids=tokens, pixel_values=given["images"]).logits
        assert torch.equal(network(**given), expected)
        network.sizes.__dict__["prompt_scale"] = 0.1
        for p in network.prompter.norm.parameters():
            p.zero_()  # P ≡ 0
        assert torch.equal(network(**given), expected)
        network.prompter.norm.bias.fill_(1.0)
        assert not torch.equal(network(**given), expected)


def test_the_prompt_depends_on_the_instruction() -> None:
    network, given = tiny_network(), inputs()
    other = {**given, "instructions": given["instructions"].flip(1)}
    with torch.no_grad():
        assert (network(**given) - network(**other)).abs().max() > 1e-3
        visual = visual_features(network.lmm, given["images"])
        keys = ("instructions", "instruction_mask", "owners")
        prompts = [network.prompt(visual, *(each[key] for key in keys)) for each in (given, other)]
    assert (prompts[0] - prompts[1]).abs().max() > 1e-3


def test_several_instructions_are_averaged() -> None:
    network, given = tiny_network(), inputs(1)
    other = {**given, "instructions": given["instructions"].flip(1)}
    both = {
        "instructions": torch.cat([given["instructions"], other["instructions"]]),
        "instruction_mask": torch.ones(2, 6, dtype=torch.int64), "owners": torch.zeros(2, dtype=torch.int64),
    }  # fmt: skip
    keys = ("instructions", "instruction_mask", "owners")
    with torch.no_grad():
        visual = visual_features(network.lmm, given["images"])
        one, two, mean = (
            network.prompt(visual, *(each[key] for key in keys)) for each in (given, other, both)
        )
    torch.testing.assert_close((one + two) / 2, mean)


def test_padding_changes_nothing() -> None:
    network, given = tiny_network(), inputs()
    padding = torch.zeros(2, 3, dtype=torch.int64)
    longer = {
        **given, "tokens": torch.cat([given["tokens"], padding + 5], 1),
        "mask": torch.cat([torch.ones(2, 9, dtype=torch.int64), padding], 1),
        "instructions": torch.cat([given["instructions"], padding + 7], 1),
        "instruction_mask": torch.cat([given["instruction_mask"], padding], 1),
    }  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(network(**longer)[:, :9], network(**given), atol=1e-5, rtol=0)


def test_merged_lora_has_the_same_logits() -> None:
    network, given = tiny_network(), inputs()
    weight = network.lmm.model.language_model.layers[0].mlp.fc1.base_layer.weight
    before = weight.clone()
    with torch.no_grad():
        expected = network(**given)
        network.merge_lora()
        assert not torch.equal(weight, before)
        torch.testing.assert_close(network(**given), expected, atol=1e-5, rtol=0)
        network.unmerge_lora()
    torch.testing.assert_close(weight, before)


def test_text_read_on_token_by_token_has_the_logits_of_the_whole() -> None:
    network, given = tiny_network(), inputs()
    tokens = given.pop("tokens")
    images = given.pop("images")
    with torch.no_grad():
        whole = network(images, tokens, **given)
        step = network.continued(images, tokens[:, :7], **given)
        for place, token in ((6, None), (7, tokens[:, 7:8]), (8, tokens[:, 8:9])):
            torch.testing.assert_close(step(token), whole[:, place], atol=1e-5, rtol=0)


def test_another_number_of_places_is_refused() -> None:
    given = inputs()
    given["tokens"][0, 2] = 5
    with pytest.raises(ValueError, match="4 places for each image, got 7 for 2 images"):
        tiny_network()(**given)


def test_another_type_leaves_the_frequencies_in_float32() -> None:
    network = tiny_network()
    before = network.lmm.model.language_model.rotary_emb.inv_freq.clone()
    network.to(torch.bfloat16)
    assert torch.equal(network.lmm.model.language_model.rotary_emb.inv_freq, before)
    assert network.prompter.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"base": "bunny"}, "bunny-v1.0-3b"), ({"base": {"vision_config": {}}}, "text_config"),
        ({"stage": 3}, "stage must be 1 or 2"), ({"rank": -1}, "rank must be"), ({"hiden": 1}, "hiden"),
        ({"base": {**LLAVA, "vision_feature_layer": 9}}, "vision_feature_layer must be from -4 to 3"),
    ],
)  # fmt: skip
def test_a_wrong_size_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        create_model("q-adapt", **{**TINY, **changes})
    assert "\n" not in str(caught.value)


# Images


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (37, 37), (28, 28), (9, 12), (3, 140)])
def test_an_image_is_padded_to_a_square_and_resized(size: tuple[int, int]) -> None:
    preprocessing = dataclasses.replace(get_architecture("q-adapt").preprocessing, size=(28, 28))
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    side = max(size)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square = torch.full((1, 3, side, side), 0.5)
    square[:, :, top : top + size[0], left : left + size[1]] = image
    resized = F.interpolate(square, size=(28, 28), mode="bicubic", antialias=True)
    torch.testing.assert_close(preprocessing(image), (resized - 0.5) / 0.5, atol=1e-5, rtol=0)


def test_a_narrow_strip_is_never_a_large_square() -> None:
    preprocessing = get_architecture("q-adapt").preprocessing
    seen = preprocessing(torch.ones(1, 3, 1000, 50_000))  # a square of it would take 30 GB
    assert seen.shape == (1, 3, 384, 384)
    assert seen[0, 0, [192, 0], [192, 0]].tolist() == pytest.approx([1, 0], abs=1e-3)


# Files


@pytest.mark.parametrize("renamed", [legacy, bunny, str])
def test_a_checkpoint_is_all_but_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: Any
) -> None:
    offline_cache(tmp_path, monkeypatch, renamed)
    from safetensors.torch import load_file

    config = write_checkpoint(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    own = tiny_network()
    assert stored.keys() == {name for name in own.state_dict() if is_stored(name)}
    assert {name for name, _ in own.trained()} <= stored.keys()
    assert all(len(each.sha256) == 64 for each in (*config.bases, *config.tokenizers))
    assert read_config(tmp_path / "out") == config and config.preprocessing.size == (28, 28)
    network, _ = load_checkpoint(tmp_path / "out")
    for name, tensor in own.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    given = inputs()
    with torch.no_grad():
        assert torch.equal(network(**given), own(**given))


def test_a_training_starts_from_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline_cache(tmp_path, monkeypatch)
    network = create_model("q-adapt", **TINY)
    load_bases(network, BASES)
    own = tiny_network().state_dict()
    for name, tensor in network.state_dict().items():
        if not is_stored(name) or "projector" in name:
            assert torch.equal(tensor, own[name]), name


def test_a_base_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = offline_cache(tmp_path, monkeypatch)
    write_checkpoint(tmp_path / "out")
    next(cache.rglob("model-00002*")).unlink()
    with pytest.raises(HubError, match="base weights: tests/tiny-lmm") as caught:
        load_checkpoint(tmp_path / "out", local_files_only=True)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_form_is_refused(tmp_path: Path) -> None:
    from qmamba.models import TokenizerFile

    for wrong in ({"filename": "../tokenizer.json"}, {"filename": "a.bin"}, {"role": "A b"}, {"repo": "x"}):
        with pytest.raises(ValueError, match="must be"):
            TokenizerFile(
                **{"role": "language", "repo": "a/b", "revision": "main", "filename": "t.json", **wrong}
            )
    with pytest.raises(CheckpointError, match="'tokenizers' must be"):
        offline = get_architecture("q-adapt")
        from qmamba.checkpoints import ModelConfig

        ModelConfig(name="x", arch="q-adapt", output="words", bases=offline.bases, tokenizers=("a",))


def test_nothing_heavy_is_imported_before_a_network_is_built() -> None:
    code = (
        "import sys, qmamba, qmamba.scoring.language\n"
        "heavy = {'transformers', 'peft', 'tokenizers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendError, match=r"pip install \"qmamba\[explain\]\"") as caught:
        create_model("q-adapt", **TINY)
    assert "\n" not in str(caught.value)
