"""What a program that is compiled for an accelerator costs, read from its text."""

import inspect
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from commands import RESULTS, assert_refused, assert_reported, call

import optabs
from benchmarks import accelerators
from benchmarks.accelerators import compiled, devices
from benchmarks.accelerators.devices import DEVICES, Device
from benchmarks.accelerators.rows import ROWS, TREES, Row, Stepper
from benchmarks.lab.hlo import collectives_of, kernels_of
from benchmarks.lab.records import FILE, Key, Records

# What was recorded: the entry of a step of [256, 128] for an H100, with what it calls.
GPU = """\
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias) }

%fused_reduce (param_0.1: f32[256,128]) -> f32[] {
  %param_0.1 = f32[256,128]{1,0} parameter(0)
  %constant_1 = f32[] constant(0)
  ROOT %reduce_sum.1 = f32[] reduce(%param_0.1, %constant_1), dimensions={0,1}, to_apply=%add
}

%region_1.3 (arg_tuple.1: (f32[], f32[256,128])) -> (f32[], pred[]) {
  %arg_tuple.1 = (f32[], f32[256,128]{1,0}) parameter(0)
  %get-tuple-element.2.0 = f32[] get-tuple-element(%arg_tuple.1), index=0
  %get-tuple-element.3.0 = f32[256,128]{1,0} get-tuple-element(%arg_tuple.1), index=1
  %input_reduce_fusion.9 = f32[] fusion(%get-tuple-element.3.0), kind=kInput, \
calls=%fused_reduce
  %wrapped_is-finite.1 = pred[] fusion(%input_reduce_fusion.9), kind=kLoop, calls=%wrapped
  ROOT %tuple.54 = (f32[], pred[]) tuple(%input_reduce_fusion.9, %wrapped_is-finite.1)
}

%region_2.4 (arg_tuple.2: (f32[], pred[])) -> (f32[], pred[]) {
  %arg_tuple.2 = (f32[], pred[]) parameter(0)
  %get-tuple-element.4.0 = f32[] get-tuple-element(%arg_tuple.2), index=0
  %copy.4 = f32[] copy(%get-tuple-element.4.0)
  %wrapped_is-finite.2 = pred[] fusion(%copy.4), kind=kLoop, calls=%wrapped
  ROOT %tuple.55 = (f32[], pred[]) tuple(%copy.4, %wrapped_is-finite.2)
}

ENTRY %main.7 (g.3: f32[256,128], p.1: f32[256,128], m.1: bf16[256,128]) -> f32[256,128] {
  %m.1 = bf16[256,128]{1,0} parameter(2), metadata={op_name="state[0].mu['w']"}
  %p.1 = f32[256,128]{1,0} parameter(1), sharding={replicated}
  %g.3 = f32[256,128]{1,0} parameter(0)
  %input_add_reduce_fusion = (f32[128]{0}, u16[256,128]{1,0}, pred[]) fusion(%g.3, %m.1), \
kind=kInput, calls=%fused_add_reduce, metadata={op_name="jit(f)/reduce_sum" stack_frame_id=2}
  %get-tuple-element.15 = u16[256,128]{1,0} \
get-tuple-element(%input_add_reduce_fusion), index=1
  %bitcast.4 = bf16[256,128]{1,0} bitcast(%get-tuple-element.15)
  %get-tuple-element.13 = f32[128]{0} get-tuple-element(%input_add_reduce_fusion), index=0
  %get-tuple-element.12 = pred[] get-tuple-element(%input_add_reduce_fusion), index=2
  %input_reduce_fusion.1 = f32[] fusion(%get-tuple-element.13), kind=kInput, \
calls=%fused_reduce.1
  %tuple.2 = (f32[], f32[256,128]{1,0}) tuple(%input_reduce_fusion.1, %g.3)
  %tuple.3 = (f32[], pred[]) tuple(%input_reduce_fusion.1, %get-tuple-element.12)
  %cond.5 = (f32[], pred[]) conditional(%get-tuple-element.12, %tuple.3, %tuple.2), \
true_computation=%region_2.4, false_computation=%region_1.3, metadata={op_name="jit(f)/cond"}
  %cond.6.0 = f32[] get-tuple-element(%cond.5), index=0
  %copy.1 = f32[256,128]{1,0} copy(%p.1)
  ROOT %loop_subtract_fusion = f32[256,128]{1,0} fusion(%copy.1, %bitcast.4, %cond.6.0, \
/*index=3*/%get-tuple-element.12), kind=kLoop, calls=%fused_subtract
}

"""
# The same for a TPU; what is marked by S(1) or S(6) is kept on its chip.
TPU = """\
HloModule jit_f, is_scheduled=true

ENTRY %main.7 (g.3: f32[256,128], p.1: f32[256,128], m.1: f32[256,128]) -> f32[256,128] {
  %constant.9 = f32[]{:T(128)} constant(1e+30)
  %g.3 = f32[256,128]{1,0:T(8,128)} parameter(0)
  %copy-start = (f32[256,128]{1,0:T(8,128)S(1)}, f32[256,128]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%g.3)
  %m.1 = f32[256,128]{1,0:T(8,128)} parameter(2)
  %slice-start = ((f32[256,128]{1,0:T(8,128)}), f32[64,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%m.1), slice={[0:64], [0:128]}
  %p.1 = f32[256,128]{1,0:T(8,128)} parameter(1)
  %copy-done = f32[256,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %multiply_reduce_fusion.1 = (f32[]{:T(128)}, f32[256,128]{1,0:T(8,128)}) \
fusion(%copy-done, %m.1), kind=kLoop, calls=%fused_computation.2
  %get-tuple-element.9 = f32[256,128]{1,0:T(8,128)} get-tuple-element(\
%multiply_reduce_fusion.1), index=1
  %get-tuple-element.4 = f32[]{:T(128)} get-tuple-element(%multiply_reduce_fusion.1), index=0
  %gt.1 = pred[]{:T(512)S(6)} compare(%get-tuple-element.4, %constant.9), direction=GT
  %slice-done = f32[64,128]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  ROOT %sub.0 = f32[256,128]{1,0:T(8,128)} subtract(%p.1, %get-tuple-element.9)
}
"""
# A kernel that multiplies every 16th row of an array with another one, and all of a third.
SLICED = """\
HloModule jit_f, is_scheduled=true

%fused (p0: f32[256,128], p1: f32[16,128], p2: f32[256,128]) -> (f32[16,128], f32[]) {
  %p0 = f32[256,128]{1,0} parameter(0)
  %twice.1 = f32[256,128]{1,0} add(%p0, %p0)
  %slice.1 = f32[16,128]{1,0} slice(%twice.1), slice={[0:256:16], [0:128]}
  %p1 = f32[16,128]{1,0} parameter(1)
  %product.1 = f32[16,128]{1,0} multiply(%slice.1, %p1)
  %p2 = f32[256,128]{1,0} parameter(2)
  %zero.1 = f32[] constant(0)
  %sum.1 = f32[] reduce(%p2, %zero.1), dimensions={0,1}, to_apply=%add
  ROOT %tuple.1 = (f32[16,128]{1,0}, f32[]) tuple(%product.1, %sum.1)
}

ENTRY %main.7 (a: f32[256,128], b: f32[16,128], c: f32[256,128]) -> (f32[16,128], f32[]) {
  %a = f32[256,128]{1,0} parameter(0)
  %b = f32[16,128]{1,0} parameter(1)
  %c = f32[256,128]{1,0} parameter(2)
  ROOT %f.1 = (f32[16,128]{1,0}, f32[]) fusion(%a, %b, %c), kind=kInput, calls=%fused
}
"""
ARRAY = 256 * 128  # entries


def test_what_is_read_through_a_slice_counts_as_the_slice() -> None:
    (kernel,) = kernels_of(SLICED)
    assert kernel.moved == 4 * (ARRAY + 3 * ARRAY // 16) + 4
    (whole,) = kernels_of(SLICED.replace("slice(%twice.1)", "reverse(%twice.1)"))
    assert whole.moved == kernel.moved + 4 * (ARRAY - ARRAY // 16)


def test_the_kernels_of_a_gpu_and_what_they_move() -> None:
    assert kernels_of(GPU) == [
        ("input_add_reduce_fusion", "fusion", 4 * ARRAY + 2 * ARRAY + 512 + 2 * ARRAY + 1),
        ("input_reduce_fusion.1", "fusion", 512 + 4),
        # The larger branch: that of the other copies a number.
        ("input_reduce_fusion.9", "fusion", 4 * ARRAY + 4),
        ("wrapped_is-finite.1", "fusion", 4 + 1),
        ("copy.1", "copy", 8 * ARRAY),
        ("loop_subtract_fusion", "fusion", 4 * ARRAY + 2 * ARRAY + 4 + 1 + 4 * ARRAY),
    ]


def test_the_kernels_of_a_tpu_and_what_leaves_its_memory() -> None:
    assert kernels_of(TPU) == [
        ("copy-done", "copy-done", 4 * ARRAY),  # to the chip
        ("multiply_reduce_fusion.1", "fusion", 4 * ARRAY + 4 + 4 * ARRAY),
        ("slice-done", "slice-done", ARRAY),  # a quarter
        ("sub.0", "subtract", 12 * ARRAY),
    ]


@pytest.mark.parametrize(
    ("program", "old", "new", "more"),
    [
        (GPU, "%copy.1 = f32[256,128]{1,0} copy(%p.1)", "", None),
        (GPU, "m.1 = bf16[256,128]", "m.1 = f32[256,128]", 2 * ARRAY),
        (GPU, "copy.4 = f32[]", "copy.4 = f32[512,128]", 12 * ARRAY - 4),
        (TPU, "(8,128)S(1)} copy-done", "(8,128)} copy-done", 8 * ARRAY),
        (TPU, "slice-done = f32[64,", "slice-done = f32[128,", ARRAY),
    ],
)
def test_another_text_gives_other_numbers(
    program: str, old: str, new: str, more: int | None
) -> None:
    assert program.count(old) == 1
    other = program.replace(old, new)
    if more is None:  # what it reads is nowhere
        with pytest.raises(KeyError):
            kernels_of(other)
        return
    both = [sum(each.moved for each in kernels_of(text)) for text in (program, other)]
    assert both[1] - both[0] == more


def test_collectives_are_counted_with_what_each_device_receives() -> None:
    program = """
  %all-reduce.12 = (f32[]{:T(128)}, f32[4]{0:T(128)}) all-reduce(%a, %b), channel_id=10
  %all-reduce-start = f32[62]{0} all-reduce-start(%c), to_apply=%add
  %all-reduce-done = f32[62]{0} all-reduce-done(%all-reduce-start)
  %all-gather-start = (f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%d), dimensions={0}
  %all-gather-done = f32[64,4]{1,0} all-gather-done(%all-gather-start)
  %fusion.1 = f32[64,4]{1,0} fusion(%all-gather-done, %all-reduce.12), kind=kLoop
"""
    received = {"all-reduce": (2, 4 + 16 + 248), "all-gather": (1, 1024)}
    assert collectives_of(program) == received
    assert collectives_of(GPU + TPU) == {}


SHAPES = {"w": (64, 32), "b": (32,)}
SMALL = {name: jax.ShapeDtypeStruct(each, jnp.float32) for name, each in SHAPES.items()}
ENTRIES = 64 * 32 + 32
# The eight devices of the tests, as the accelerators' meshes are.
EIGHT = Device("eight CPUs (not run)", "cpu", ("jaxlib",), lambda: jax.devices("cpu"), "8")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (accelerators, compiled):
        monkeypatch.setattr(module, "TREES", {"small": lambda: SMALL})
    monkeypatch.setitem(DEVICES, "eight", EIGHT)


def test_every_optimizer_is_a_row_that_takes_bfloat16_parameters() -> None:
    takes = {
        name: inspect.signature(each).parameters
        for name, each in vars(optabs).items()
        if inspect.isfunction(each)
    }
    rated = {name for name in takes if "learning_rate" in takes[name]}
    assert {"adam", "dao_e"} <= rated <= set(ROWS)
    params = {"w": jax.ShapeDtypeStruct((128, 64), jnp.bfloat16)}
    for name, row in ROWS.items():
        if not row.package:
            state = jax.eval_shape(row.make().init, params)
            assert all(leaf.size < 2**14 for leaf in jax.tree.leaves(state)), name


def test_the_trees_have_their_sizes_and_the_transformer_is_in_bfloat16() -> None:
    leaves = {name: jax.tree.leaves(make()) for name, make in TREES.items()}
    sizes = {name: sum(math.prod(x.shape) for x in own) for name, own in leaves.items()}
    assert sizes["4096x4096"] == 2**24
    assert sizes["resnet18"] == 11_173_962
    assert sizes["transformer_bfloat16"] == pytest.approx(28.5e6, rel=0.01)
    assert {x.dtype for x in leaves["transformer_bfloat16"]} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.usefixtures("small")
def test_a_row_is_compiled_for_the_cpu_recorded_and_shown(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"accelerators --rows sgd --devices cpu --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    (record,) = Records(tmp_path)
    # A kernel an array: a gradient and parameters read and written, and no copy.
    assert record.result["kernels"] == {"fusion": 2}
    for cost in ("bytes", "least_bytes"):
        assert record.result[cost] == pytest.approx(12, abs=0.1)
    assert compiled.bytes_of(record.key) == pytest.approx(record.result["bytes"], rel=1e-5)
    text = (tmp_path / "README.md").read_text()
    assert "compiled for this CPU (not run) by jaxlib" in text
    assert "| sgd | 2 (0) | 2 | 12.0 | 12.0 | 8.0 (0.0) |" in text
    before = (tmp_path / FILE).read_bytes()
    assert call(monkeypatch, line) == 0
    assert call(monkeypatch, f"accelerators --report --out {tmp_path}") == 0
    assert (tmp_path / FILE).read_bytes() == before
    assert (tmp_path / "README.md").read_text() == text


def _normalised(params: Any, state: Any, grads: Any) -> Any:
    """Descent by a gradient of norm 1."""
    norm = optax.tree.norm(grads)
    return jax.tree.map(lambda p, g: p - g / norm, params, grads), state


@pytest.mark.usefixtures("small")
def test_what_is_sent_on_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data-parallel, the mean of the gradients; fully sharded, what the step itself needs."""
    rows = {"sgd": ROWS["sgd"], "norm": Row(lambda: Stepper(lambda _: (), _normalised))}
    monkeypatch.setattr(compiled, "ROWS", rows)
    sgd, norm = (compiled.measure(Key("small", row, "eight")) for row in rows)
    for result in (sgd, norm):
        ((count, size),) = result[compiled.DATA_PARALLEL].values()
        assert (count <= 2, size) == (True, 4 * ENTRIES)
        assert set(result[compiled.DATA_PARALLEL]) == {"all-reduce"}
    assert sgd[compiled.SHARDED] == {}
    assert set(norm[compiled.SHARDED]) == {"all-reduce"}
    alone = rows["sgd"]._replace(meshes=False)
    monkeypatch.setattr(compiled, "ROWS", {"sgd": alone})
    assert compiled.SHARDED not in compiled.measure(Key("small", "sgd", "eight"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100", "eight"])
@pytest.mark.usefixtures("small")
def test_a_population_sends_nothing_while_it_learns(name: str) -> None:
    _skip_without(DEVICES[name])
    sent = compiled.sent_by(Key(compiled.POPULATION, compiled.GADAM, name))
    assert sent["learn"] == {}
    assert set(sent["evolve"]) == {"all-gather", "all-reduce"}


@pytest.mark.usefixtures("small")
def test_without_the_compilers_one_sentence_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(DEVICES, "eight")
    monkeypatch.setattr(devices, "installed", lambda package: package == "jaxlib")
    needed = "need jax-cuda13-plugin, nvidia-cuda-nvcc{}; call `make accelerators` or install "
    left = "optabs[accelerators]; what is left: cpu."
    sentence = f"devices h100 {needed.format('')}{left}"
    named = "accelerators --devices h100,cpu"
    assert_refused(named, sentence, tmp_path, monkeypatch, capsys)
    assert call(monkeypatch, f"accelerators --rows sgd --out {tmp_path}") == 0
    printed = capsys.readouterr().out
    assert f"devices h100, v5e {needed.format(', libtpu')}{left}\n" in printed
    assert [each.key for each in Records(tmp_path)] == [Key("small", "sgd", "cpu")]


@pytest.mark.usefixtures("small")
def test_rows_of_libraries_that_are_not_there_are_left_out_and_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rollfast", None)
    line = "accelerators --rows rollfast.adamw8,sgd --devices cpu"
    assert call(monkeypatch, f"{line} --out {tmp_path}") == 0
    assert "Left out: rollfast.adamw8 (needs rollfast).\n" in capsys.readouterr().out
    assert [each.key.arm for each in Records(tmp_path)] == ["sgd"]
    # Its kernels are for a GPU alone.
    kept = compiled.units_of(["small"], ["flashoptim.flash_adamw"], ["cpu", "eight"])
    assert list(kept) == []


def test_parameters_in_fewer_bits_are_a_row_of_trees_in_bfloat16() -> None:
    for tree, count in {"4096x4096": 0, "resnet18": 0, "transformer_bfloat16": 1}.items():
        assert len([*compiled.units_of([tree], ["narrow_params"], ["cpu"])]) == count


def test_bad_input_is_one_sentence(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, sentence in {
        "--rows adagram": "rows is 'adagram'; choose from optax.sgd, optax.momentum,",
        "--trees oak": "trees is 'oak'; choose from 4096x4096, resnet18, transformer",
        "--devices a100": "devices is 'a100'; choose from h100, v5e, cpu.",
        "--run --minutes 0": "minutes is 0; pass a number above 0.",
        "--run --data nowhere": "data 'nowhere' does not exist; pass an archive",
    }.items():
        assert_refused(f"accelerators {line}", sentence, tmp_path, monkeypatch, capsys)


def test_committed_records_give_the_committed_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_reported("accelerators", tmp_path, monkeypatch)


def _skip_without(device: Device) -> None:
    if device.lacks:
        pytest.skip(f"{', '.join(device.lacks)}: not installed; call `make accelerators`")


HELD = (
    "optax.adam", "optax.lion", "adam", "adamw_abs", "dao_e", "dao_e_bfloat16", "steered_adam",
    "optax.adamw_8bit", "adamw_abs_8bit", "adamw_abs_bfloat16", "optax.lion_8bit",
    "optax.muon_8bit",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", HELD)
def test_a_step_for_an_h100_moves_the_bytes_of_its_record(row: str) -> None:
    key = Key("4096x4096", row, "h100")
    device, record = DEVICES["h100"], Records(RESULTS / "accelerators").get(key)
    _skip_without(device)
    if record is None:
        pytest.skip(f"{row} has no record; `python -m benchmarks accelerators` makes it")
    if record.config["compiler"] != device.compiler:
        pytest.skip(f"recorded with {record.config['compiler']}, here is {device.compiler}")
    assert compiled.bytes_of(key) == pytest.approx(record.result["bytes"], rel=0.02)
