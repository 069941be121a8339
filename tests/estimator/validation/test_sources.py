"""Every row of a published table becomes a case whose plan is sound and fits its cluster, or says why it cannot."""

from __future__ import annotations

import csv

import pytest

from dnnmem.estimator import plan as p
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.validation.case import FLASH, Case, decoder
from dnnmem.estimator.validation.sources import cases

USABLE = {
    "vtrain_single": 680, "vtrain_multi": 68, "megatron_selective_recompute_2022": 8, "llmfoundry_mpt_throughput": 105,
    "torchtitan_llama_moe_curated": 36, "internevo_a100_a800": 20, "fms_megatron_throughput": 1,
    "torchao_torchtune_curated": 2, "xmem_sample": 5, "torchgpipe": 0, "litgpt_resource": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def found(root):
    return cases(sorted((root / "tests/accuracy/published").glob("*.csv")))


def of(found, source, line):
    return next(case for case in found if (case.source, case.line) == (source, line))


def test_each_table_has_the_rows_that_can_be_predicted(found):
    counts = {source: sum(case.source == source and not case.reason for case in found) for source in USABLE}
    assert counts == USABLE
    assert {case.source for case in found} == set(USABLE)


def test_every_case_has_a_sound_plan_that_fills_its_cluster_and_something_measured(found):
    for case in (case for case in found if not case.reason):
        p.check(case.plan)
        cluster = find_cluster(case.cluster)
        assert 0 <= cluster.gpus - case.plan.mesh.world_size < cluster.gpus_per_node
        assert cluster.device.name == case.gpu
        assert case.out_of_memory or any(case.measured(metric) for metric in ("step_seconds", "peak_reserved_bytes"))
        assert case.plan.batch.micro_batch in (case.batch, None)


def test_a_row_of_vtrains_node_is_megatron_without_recompute_and_padding(found):
    # GIVEN 8 GPUs, global batch 32 in micro-batches of 4, TP 2, DP 2, PP 2, 24 layers of width 1024
    case = of(found, "vtrain_single", 2)
    # THEN three layers are recorded, and each replica has four micro-batches
    assert (case.plan.mesh, case.plan.batch.accumulation) == (p.Mesh(dp_replicate=2, tp=2, pp=2), 4)
    assert (case.layers, case.batch, case.seq, case.measured_seconds) == (24, 4, 1024, pytest.approx(0.219732754))
    assert {"layers=3", "width=1024", "attention=math", "dtype=float16", "vocab=50256"} <= set(case.target_args)
    assert case.strategy == "ddp + tp + 1f1b"
    # AND many nodes recompute each layer, and pad the vocabulary
    assert of(found, "vtrain_multi", 2).plan.remat.policy == "full"
    assert "vocab=51200" in of(found, "vtrain_multi", 2).target_args


def test_tokens_of_a_step_over_its_rate_are_its_seconds(found):
    for case in found:
        if case.source == "llmfoundry_mpt_throughput" and not case.reason:
            tokens = case.batch * case.plan.batch.accumulation * case.seq
            assert tokens / float(case.row["Throughput (T/s/GPU)"]) == pytest.approx(case.measured_seconds, rel=0.02)


def test_float8_and_experts_say_so(found):
    reasons = " ".join(case.reason for case in found if case.source == "torchtitan_llama_moe_curated")
    for word in ("float8", "expert parallelism"):
        assert word in reasons


def test_context_parallelism_and_the_shape_of_a_mixture_are_in_the_case(found):
    # GIVEN Llama on four GPUs of which two share a sequence, and DeepSeek's 16B on eight
    dense, mixture = (of(found, "torchtitan_llama_moe_curated", line) for line in (53, 69))
    # THEN ranks gather keys and values at once, and the words of the run are those of its note
    assert [case.plan.mesh for case in (dense, mixture)] == [p.Mesh(dp_shard=2, cp=2), p.Mesh(dp_shard=4, cp=2)]
    assert dense.strategy == "zero3 + cp all_gather, full recompute"
    assert (mixture.target, mixture.layers) == ("hf:deepseek-v2-lite", None)
    assert "vocab_size=129280" in mixture.target_args
    # AND flex_attention is no kernel of cuDNN's
    assert dense.rates == FLASH


def test_what_torchtitan_did_follows_from_the_day(found):
    # GIVEN runs of June 2024, February 2025 and September 2025
    early, middle, late = (of(found, "torchtitan_llama_moe_curated", line) for line in (34, 38, 77))
    # THEN segments are expandable, logits dropped, updates fused and roots split since the commits that did it
    assert [case.allocator for case in (early, middle, late)] == ["", *["expandable_segments:True"] * 2]
    assert [case.plan.batch.keep_output for case in (early, middle, late)] == [True, False, False]
    assert [case.plan.optimizer.kernel for case in (early, middle, late)] == [None, None, "fused"]
    assert [case.plan.sharding.split_root for case in (early, middle, late)] == [False, False, True]
    # AND a run that ended out of memory is predicted too
    assert of(found, "torchtitan_llama_moe_curated", 81).out_of_memory


def test_interleaving_and_selective_recompute_are_in_the_plan(found):
    case = next(
        c for c in found if c.source.startswith("megatron") and c.plan.mesh.pp > 1 and "selective" in c.row["mode"]
    )
    assert case.plan.remat.policy == "attention"
    assert case.plan.tensor.sequence_parallel
    assert case.plan.pipeline.chunks == int(case.row["pipeline_interleaving"])


def write(path, rows):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def test_a_table_is_known_by_its_columns_in_any_order_and_under_any_name(found, tmp_path):
    # GIVEN a row of a table with its columns turned round, one more, and a file name that says nothing
    case = of(found, "llmfoundry_mpt_throughput", 2)
    path = write(tmp_path / "mine.csv", [{"mine": "7", **dict(reversed(case.row.items()))}])
    # THEN it is the same case
    again = cases([path])[0]
    assert (again.source, again.key, again.plan) == (case.source, case.key, case.plan)


@pytest.mark.parametrize("cell", ["", "many", "0", "2.5", "nan"])
def test_a_cell_that_is_no_count_is_a_reason_with_its_column(found, tmp_path, cell):
    row = dict(of(found, "vtrain_single", 2).row) | {"micro batch": cell}
    case = cases([write(tmp_path / "mine.csv", [row])])[0]
    assert (case.source, case.line) == ("vtrain_single", 2)
    assert "column 'micro batch' has" in case.reason


def test_batches_that_do_not_divide_are_a_reason(found, tmp_path):
    row = dict(of(found, "vtrain_single", 2).row) | {"global batch": "33"}
    assert "33 is no multiple of 8" in cases([write(tmp_path / "mine.csv", [row])])[0].reason


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.csv"):
        cases([path])


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        cases([tmp_path / "none.csv"])


def test_timm_reads_gpu_and_layout_from_the_file_name(root, tmp_path):
    published = root / "tests/accuracy/published/timm"
    case = cases([next(published.glob("*nhwc*"))])[0]
    assert (case.gpu, "channels_last=true" in case.target_args) == ("rtx-3090-24gb", True)
    unnamed = cases([write(tmp_path / "mine.csv", [dict(case.row)])])[0]
    assert "tells no GPU" in unnamed.reason


def test_a_shallow_model_is_recorded_whole():
    assert decoder(layers=2, heads=1, width=8) == (("layers=2", "heads=1", "width=8"), None)


def test_a_strategy_names_what_is_used():
    hybrid = p.Plan(mesh=p.Mesh(dp_replicate=2, dp_shard=4, tp=2), sharding=p.Sharding(strategy="zero3"))
    assert Case(plan=hybrid).strategy == "hsdp zero3 + tp"


def test_attention_is_cudnn_s_where_torchtitan_s_day_has_it_so(found):
    # GIVEN runs of October and of September 2025, and MPT's of 2023
    lines = (
        ("torchtitan_llama_moe_curated", 55),
        ("torchtitan_llama_moe_curated", 77),
        ("llmfoundry_mpt_throughput", 2),
    )
    assert [dict(of(found, *line).rates) for line in lines] == [{}, FLASH, FLASH]
