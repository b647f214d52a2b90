"""Other models, settings and indices, made up at random: one line and nothing written, or the right model."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from dinojax.errors import RunError
from tests.weights_convert import published
from tests.weights_convert.fuzzing import FILES, fuzzed
from weights_convert import readers
from weights_convert.__main__ import main

LAYOUTS: dict[str, dict[str, np.ndarray]] = {
    "dinov2": published.rebuilt(published.backbone(32, 1, 2)),
    "registers": published.rebuilt(published.backbone(32, 1, 2, registers=4, gated=88)),
    "hf": published.rebuilt(published.hf(32, 1, 2)),
    "timm": published.rebuilt(published.timm(32, 1, 2, registers=4)),
    "torchvision": published.rebuilt(published.torchvision(**published.SMALL)),
    "keras": published.rebuilt(published.keras(**published.SMALL)),
}
# What a model may go without.
_OPTIONAL = ("mask_token", "register_tokens", "num_batches_tracked")


@pytest.mark.parametrize("layout", LAYOUTS)
@fuzzed(15)
@given(data=st.data())
def test_another_model_is_refused_whole(layout: str, data: st.DataObject) -> None:
    tensors = dict(LAYOUTS[layout])
    name = data.draw(st.sampled_from([name for name in tensors if not name.endswith(_OPTIONAL)]))
    array = tensors[name]
    change = data.draw(st.sampled_from(["drop", "rename", "add", "axis", "type", "nan", "inf"]))
    if change in ("drop", "rename"):
        del tensors[name]
    if change in ("rename", "add"):
        tensors[name + data.draw(st.sampled_from(["_", ".0", " ", "é"]))] = array
    if change == "axis":
        tensors[name] = array[..., None] if data.draw(st.booleans()) else array[None]
    if change == "type":
        tensors[name] = array.astype(data.draw(st.sampled_from([np.int64, np.uint8, np.bool_])))
    if change in ("nan", "inf"):
        tensors[name] = np.full_like(array, np.nan if change == "nan" else -np.inf)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "x.safetensors"
        safetensors.numpy.save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, source)
        heads = [] if layout in ("torchvision", "keras") else ["--heads", "2"]
        assert main([str(source), f"{folder}/model", *heads]) == 1
        assert [path.name for path in Path(folder).iterdir()] == ["x.safetensors"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)
SETTINGS = [
    *("model_type", "hidden_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size"),
    *("layer_norm_eps", "hidden_act", "use_swiglu_ffn", "qkv_bias", "mlp_ratio", "num_channels", "num_register_tokens"),
]
PREPROCESSING = [
    *("size", "crop_size", "image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "do_resize"),
    "do_center_crop",
]


@fuzzed(60)
@given(
    config=st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=3),
    preprocessor=st.dictionaries(st.sampled_from(PREPROCESSING), VALUES, max_size=3),
    alone=st.booleans(),
)
def test_arbitrary_settings_of_folders_end_in_a_line_or_a_model(
    config: dict[str, object], preprocessor: dict[str, object], alone: bool
) -> None:
    known = json.loads((FILES / "hf_dinov2_tiny" / "config.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(FILES / "hf_dinov2_tiny" / "model.safetensors", folder)
        (folder / "config.json").write_text(json.dumps(config if alone else known | config))
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        status = main([str(folder), str(folder / "model")])
        assert status in (0, 1, 2)
        assert (folder / "model").exists() == (status == 0)
        if status == 0:
            assert main(["--inspect", str(folder / "model")]) == 0
            stored = safetensors.numpy.load_file(folder / "model" / "params.safetensors")
            expected = readers.read(FILES / "hf_dinov2_tiny")["layernorm.bias"]
            np.testing.assert_array_equal(stored["norm.bias"], expected)


@fuzzed(40)
@given(
    places=st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["1.safetensors", "2.safetensors", "../1.safetensors", "..", "", "index.json"]) | VALUES,
    )
)
def test_arbitrary_indices_give_their_tensors_or_are_refused(places: dict[str, object]) -> None:
    arrays = {name: np.full(2, i, np.float32) for i, name in enumerate("abc")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "inside"
        folder.mkdir()
        safetensors.numpy.save_file({"a": arrays["a"], "b": arrays["b"]}, folder / "1.safetensors")
        safetensors.numpy.save_file({"c": arrays["c"]}, folder / "2.safetensors")
        shutil.copy(folder / "1.safetensors", name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        try:
            found = readers.read(folder)
        except RunError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
        assert found.keys() == places.keys()
        assert all(np.array_equal(found[key], arrays[key]) for key in found)
