"""Every error becomes a problem of one kind, with its status and a stable name."""

import msgspec
import pytest

from anomaly_vae import errors as library
from serving import problems
from serving.problems import KINDS, ProblemError, to_problem


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.slug)
def test_every_kind_is_a_to_problem_its_status(kind):
    response = ProblemError(kind, "why").response
    assert response.status_code == kind.status
    details = msgspec.json.decode(response.body, type=problems.ProblemDetails)
    assert (details.status, details.title, details.detail) == (kind.status, kind.title, "why")


def leaves(kind):
    below = kind.__subclasses__()
    return {kind}.union(*map(leaves, below)) if below else {kind}


def test_every_error_of_the_library_is_mapped():
    """Input at fault is a 422; the rest is the service's own fault."""
    for kind in leaves(library.AnomalyVAEError):
        error = kind(0, "f", "r") if kind is library.RecordError else kind("why")
        expected = 422 if isinstance(error, library.DataError) else 500
        assert to_problem(error).kind.status == expected


def test_kinds_have_names_of_their_own():
    assert len({kind.slug for kind in KINDS}) == len(KINDS)
