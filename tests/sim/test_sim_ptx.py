"""The PTX parser, and compiling to PTX and cubins."""

from __future__ import annotations

import pytest

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
from gpuconv.sim import ptx  # noqa: E402
from gpuconv.sim.program import (  # noqa: E402
    Address,
    Imm,
    Instruction,
    Label,
    Not,
    Pair,
    Reg,
    Special,
    Sym,
    Vector,
)

TEXT = """
.version 8.0
.target sm_80
.address_size 64
.file 1 "dir/a;b//c.cu"
.const .align 4 .b8 table[16] = {0, 0, 128, 63};
.global .align 8 .u64 pointers[2] = {generic(table), table+8};
.extern .shared .align 16 .b8 dynamic[];
.section .debug_str { $L__info: .b8 1,2 }
.func (.param .b32 func_retval0) callee(.param .b64 callee_param_0) ;
.visible .entry k(.param .u64 k_param_0, .param .align 8 .b8 k_param_1[24]) // a comment
.maxntid 64, 2, 1
.minnctapersm 2
{
  .reg .pred %p<3>; .reg .f32 %f<4>; .reg .b32 %r<9>;
  .local .align 16 .b8 depot[32];
  .loc 1 12 5
  @!%p1 bra $L__BB0_2;
  ld.global.v2.f32 {%f1, _}, [%r1+-8]; /* two
  lines */ shfl.sync.bfly.b32 %r2|%p2, %r3, 0x10, 31, -1;
  .loc 1 0 0, function_name $L__info, inlined_at 1 3 4
  mov.u32 %r4, %ntid.y; setp.lt.and.s32 %p1, %r1, 07, !%p2;
$L__BB0_2:
  { .reg .b32 %r4; .param .b32 param0;
    st.param.b32 [param0+0], %r4;
    call.uni (retval0), callee, (param0, param0);
  }
  mov.f32 %f2, 0f3F800000; mov.f64 %f3, 0dBFF0000000000000; mov.u32 %r5, dynamic+4;
$L_table: .branchtargets $L__BB0_2, $L_end;
  brx.idx %r4, $L_table;
$L_end: ret;
}
"""


def test_parser_reads_every_form():
    program = ptx.parse(TEXT)
    assert program.files == {1: "dir/a;b//c.cu"}
    assert "callee" not in program.functions
    assert program.variables["table"].init[3] == Imm(63)
    assert program.variables["pointers"].init == [Sym("table"), Sym("table", 8)]
    assert program.variables["dynamic"].count is None
    k = program.functions["k"]
    assert k.directives == {"maxntid": (64, 2, 1), "minnctapersm": (2,)}
    assert [(p.name, p.size, p.align, p.array) for p in k.params] == [
        ("k_param_0", 8, 8, False),
        ("k_param_1", 24, 8, True),
    ]
    assert k.tables == {"$L_table": ["$L__BB0_2", "$L_end"]}
    assert [item.name for item in k.body if isinstance(item, Label)] == ["$L__BB0_2", "$L_end"]
    code = [item for item in k.body if isinstance(item, Instruction)]
    assert [i.name for i in code][:5] == [
        "bra",
        "ld.global.v2.f32",
        "shfl.sync.bfly.b32",
        "mov.u32",
        "setp.lt.and.s32",
    ]
    assert code[0].guard == Not(Reg("%p1"))
    assert code[0].loc == (1, 12)
    assert code[1].operands == [Vector((Reg("%f1"), Reg("_"))), Address(Reg("%r1"), -8)]
    assert code[2].operands == [Pair(Reg("%r2"), Reg("%p2")), Reg("%r3"), Imm(16), Imm(31), Imm(-1)]
    assert code[3].operands == [Reg("%r4"), Special("%ntid.y")]
    assert code[3].loc == (1, 12)  # line 0 says nothing
    assert code[4].operands[2:] == [Imm(7), Not(Reg("%p2"))]
    inner = code[5].operands
    assert isinstance(inner[0].base, Sym)
    assert inner[0].base.name != "param0"
    assert inner[1] != Reg("%r4")  # the inner scope's own register
    assert isinstance(code[6].operands[2], Vector)
    assert code[7].operands[1] == Imm(0x3F800000, "f32")
    assert code[8].operands[1] == Imm(0xBFF0000000000000, "f64")
    assert code[9].operands[1] == Sym("dynamic", 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".tex .u64 image;", "PTX line 1"),
        (".visible .entry k() {\n mov.u32 %r1, 5\n}", "PTX line 2"),
        (".visible .entry k() {\n .reg .b32 a;\n mov.u32 a, 5z;\n}", "PTX line 3"),
    ],
)
def test_what_cannot_be_read_is_refused(text, words):
    with pytest.raises(sim.UnsupportedError, match=words):
        ptx.parse(text)


@pytest.mark.skipif(bool(sim.available()), reason=sim.available() or "NVRTC answers")
class TestCompile:
    SOURCE = 'extern "C" __global__ void k(float* y) { y[threadIdx.x] = VALUE * y[0]; }'

    def test_ptx_carries_lines_and_flushes(self):
        text = sim.to_ptx(self.SOURCE, ["-DVALUE=2.f"], name="some.cu")
        assert ".loc" in text
        assert ".ftz.f32" in text
        assert ptx.parse(text).files[1] == "some.cu"

    @pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
    def test_cubin_is_an_elf_file(self, arch):
        assert sim.to_cubin(self.SOURCE, ["-DVALUE=2.f"], arch)[:4] == b"\x7fELF"

    def test_bad_architectures(self):
        with pytest.raises(ValueError, match="'sm_80'"):
            sim.to_cubin(self.SOURCE, arch="compute_80")
        with pytest.raises(sim.CompileError):
            sim.to_cubin(self.SOURCE, ["-DVALUE=2.f"], "sm_10")
