"""The order of slices in training."""

from scripts.training.sampling import SliceStream


def test_stream_visits_every_slice_once_before_any_again_and_can_be_entered_anywhere():
    def first(count, **options):
        stream = SliceStream(7, 4, seed=3, **options)
        stream.iteration = start
        return [index for index, _ in zip(stream, range(count), strict=False)]

    start = 0
    whole = first(28)
    assert all(sorted(whole[k : k + 7]) == list(range(7)) for k in range(0, 28, 7))
    assert whole[:7] != whole[7:14]
    start = 3
    assert first(16) == whole[12:]
    start = 0
    shares = [first(14, rank=rank, world_size=2) for rank in (0, 1)]
    assert [index for pair in zip(*shares, strict=True) for index in pair] == whole
