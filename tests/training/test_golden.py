"""Losses of 100 steps, pinned: whoever changes them means to.

To the digits that do not depend on the order of additions: the same loops with SSE instructions instead of
AVX2 differ by less than 1e-6.
"""

import pytest

STEPS = (0, 9, 49, 99)
TEACHER = [16.673809, 13.744296, 11.390128, 11.829385, 5.0191092, 10.132828, 2.7585101, 7.7671995]
STUDENT = [0.020828701, 1.5566377, 0.32836674, 0.40198984, 0.16309917, 0.091127008, 0.084799670, 0.18430712]


def losses(task, *names):
    metrics = [task.train_step(step) for step in range(100)]
    return [float(metrics[step][name]) for step in STEPS for name in names]


def test_teacher(make_teacher):
    found = losses(make_teacher(steps=100), "loss/continuous", "loss/quantized")
    assert found == pytest.approx(TEACHER, rel=1e-5)


def test_student(make_distill):
    task = make_distill(steps=100, critic_updates=2, dmd={"renoising": "kept"})
    found = losses(task, "student/score_gap", "critic/denoising")
    assert found == pytest.approx(STUDENT, rel=1e-5)
