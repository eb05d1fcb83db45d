"""Loops in machine code: the innermost ones around matrix instructions are found."""

import pytest
import torch

from benchmarks.linear_logprob.problem import Shape
from benchmarks.static import __main__ as program
from benchmarks.static.machine_code import Loop, hot_loops
from synpro_kernels.common.triton_status import triton_status

LISTING = """
        /*0100*/                   MOV R1, c[0x0][0x28] ;            /* 0x00 */
        /*0110*/                   LDGSTS.E.128 [R2], [R4.64] ;      /* 0x00 */
        /*0120*/              @!P0 BRA 0x2000 ;                      /* 0x00 */
        /*0130*/                   HGMMA.64x128x16.F32.BF16 R8, gdesc[UR8], R8 ;
        /*0140*/                   NOP ;
        /*0150*/                   BRA 0x180 ;
        /*0160*/               @P1 BRA 0x110 ;
        /*0170*/                   FADD R1, R1, R2 ;
        /*0180*/               @P2 BRA 0x170 ;
        /*0190*/               @P3 BRA 0x100 ;
        /*01a0*/                   SYNCS.PHASECHK P0, [UR4] ;
        /*01b0*/                   BRA 0x130 ;
        /*01c0*/                   BRA 0x1c0 ;
"""


def test_the_hot_loop_is_the_innermost_one_around_matrix_instructions():
    assert hot_loops(LISTING) == [Loop(5, 1, "64x128x16")]
    assert hot_loops(LISTING.replace("HGMMA", "FFMA")) == [Loop(5, 0, "")]
    assert hot_loops("/*0100*/ EXIT ;") == []


@pytest.mark.skipif(not triton_status()[0], reason="no Triton")
def test_the_table_has_the_kernels_of_the_output_layer_of_distilling_and_of_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases, _ = program.gather(Shape(tokens=64, width=256, vocab=512, dtype=torch.bfloat16), entropy=True)
    ours = {case.does for case in cases if case.library == "ours"}
    assert {"product + statistics", "rows: gradient", "distilling: slopes", "norm", "norm: gradient"} <= ours
    assert {"gate", "gate: gradient", "turn of heads"} <= ours
    with pytest.raises(SystemExit):
        program.main(["--only", "nowhere"])
    assert "--only: no kernel has 'nowhere' in its name" in capsys.readouterr().err
