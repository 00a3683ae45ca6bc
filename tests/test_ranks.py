import pytest

from se_lightning import ranks


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "1"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, 3),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, None),
        ({"LOCAL_RANK": "1"}, None),
    ],
)
def test_externally_launched_ranks_are_recognized(environment, rank, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.external_rank() == rank


@pytest.mark.parametrize(
    ("environment", "further"),
    [
        ({}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, True),  # srun sets no LOCAL_RANK
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "LOCAL_RANK": "0"}, True),  # a second node
    ],
)
def test_further_ranks_are_recognized_under_every_launcher(environment, further, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_further_rank() == further
