"""What is read from a compiled program's text: loops, collectives, bytes moved."""

import pytest

from jaxdiff.planning import collectives, hlo, memory

# As the compiler writes: a loop of 6 turns in steps of 2, with a collective of groups of 4 in its body; an all-gather
# in two pieces of one channel; an operand of which a fusion reads a slice; an array in on-chip memory, S(1).
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[16,100], f32[100])) -> (s32[], f32[16,100], f32[100]) {
  %state = (s32[], f32[16,100]{1,0:T(8,128)}, /*index=2*/f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %two = s32[] constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %stack = f32[16,100]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %row = f32[100]{0} get-tuple-element(%state), index=2
  %kernel = f32[100]{0} custom-call(%row), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": "{\\"q\\": 512}"
}}, metadata={op_name="jit(step)/kernel"}
  %picked = f32[100]{0} fusion(%stack, %row, %i), kind=kLoop, calls=%pick
  %reduced = f32[100]{0} all-reduce(%picked), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %out = (s32[], f32[16,100]{1,0}, f32[100]{0}) tuple(%next, %stack, %reduced)
}

%pick (p0: f32[16,100], p1: f32[100], p2: s32[]) -> f32[100] {
  %p0 = f32[16,100]{1,0:T(8,128)} parameter(0)
  %p1 = f32[100]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %layer = f32[1,100]{1,0} dynamic-slice(%p0, %p2, %zero), dynamic_slice_sizes={1,100}
  %flat = f32[100]{0} bitcast(%layer)
  ROOT %plus = f32[100]{0} add(%flat, %p1)
}

%test (state.1: (s32[], f32[16,100], f32[100])) -> pred[] {
  %state.1 = (s32[], f32[16,100]{1,0:T(8,128)}, /*index=2*/f32[100]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%start (q0: bf16[10]) -> (bf16[10], bf16[80]) {
  %q0 = bf16[10]{0} parameter(0)
  ROOT %gathered = bf16[80]{0} all-gather(%q0), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'x','y'}, dimensions={0}
}

%done (r0: bf16[10]) -> bf16[80] {
  %r0 = bf16[10]{0} parameter(0)
  ROOT %gathered.1 = bf16[80]{0} all-gather(%r0), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'x','y'}
}

ENTRY %main (x: f32[16,100], y: f32[100], z: bf16[10]) -> f32[100] {
  %x = f32[16,100]{1,0:T(8,128)} parameter(0)
  %y = f32[100]{0} parameter(1)
  %z = bf16[10]{0} parameter(2)
  %none = s32[] constant(0)
  %begin = bf16[80]{0:T(8)S(1)} fusion(%z), kind=kCustom, calls=%start
  %end = bf16[80]{0:T(8)S(1)} fusion(%z), kind=kCustom, calls=%done
  %init = (s32[], f32[16,100]{1,0:T(8,128)}, f32[100]{0}) tuple(%none, %x, %y)
  %loop = (s32[], f32[16,100]{1,0:T(8,128)}, f32[100]{0}) while(%init), condition=%test, body=%body
  %moved = f32[100]{0} collective-permute(%y), channel_id=9, source_target_pairs={{0,1},{1,0}}
  ROOT %result = f32[100]{0} get-tuple-element(%loop), index=2
}
"""


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


def test_loops_are_known(module):
    runs = {computation.root: (times, known) for computation, times, known in hlo.runs(module)}
    assert module.devices == 8
    assert runs == {"result": (1, True), "out": (6, True)}
    unknown = hlo.parse(TEXT.replace("direction=LT", "direction=NE"))
    assert {c.root: (times, known) for c, times, known in hlo.runs(unknown)}["out"] == (1, False)
    stated = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert {c.root: times for c, times, _ in hlo.runs(hlo.parse(stated))}["out"] == 5


def test_collectives_by_kind(module):
    found = collectives.collectives(module)
    assert set(found) == {"all-reduce", "all-gather", "collective-permute"}
    assert found["all-reduce"] == (6, 6 * 400, 6 * 400 * 2 * 3 / 4)
    assert found["all-gather"] == (1, 160, 160 * 7 / 8)
    assert found["collective-permute"] == (1, 400, 400)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[2,2,2]T(0,2,1)", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", 4),
        ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4,'b'}", 8),
        ("replica_groups={}", 8),
    ],
)
def test_groups_in_every_notation(words, size):
    line = hlo.parse_line(f"%r = f32[4]{{0}} all-reduce(%a), channel_id=1, {words}, to_apply=%add")
    assert collectives.group_size(line, 8) == size


def test_bytes_moved(module):
    """The fusion reads a layer and a row, and writes a row; the kernel and the sum read and write one; on-chip arrays
    are free."""
    assert memory.moved(module) == 6 * (3 * 400 + 4 + 2 * 400 + 2 * 400 + 12) + 2 * 20 + 2 * 400
