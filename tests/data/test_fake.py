import pytest
import torch

from se_lightning import FakeDataModule


def test_it_has_the_requested_shape_and_is_the_same_in_every_run():
    def batch(**options):
        data = FakeDataModule(
            size=8, num_classes=5, in_channels=2, image_size=20, batch_size=4, **options
        )
        data.setup()
        return data, next(iter(data.train_dataloader()))

    data, (images, labels) = batch()
    assert images.shape == (4, 2, 20, 20)
    assert (data.num_classes, data.in_channels, data.image_size) == (5, 2, 20)
    assert 0 <= labels.min() <= labels.max() < 5
    assert abs(images.mean()) < 0.1
    assert abs(images.std() - 1) < 0.1
    torch.testing.assert_close(images, batch()[1][0])
    assert len(data.val_dataloader().dataset) == len(data.test_dataloader().dataset) == 2


@pytest.mark.parametrize("option", ["size", "num_classes", "in_channels", "image_size"])
def test_a_wrong_option_is_refused_by_name(option):
    with pytest.raises(ValueError, match=rf"`{option}` \(=0\)"):
        FakeDataModule(**{option: 0})
