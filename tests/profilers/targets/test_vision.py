"""Published image classifiers: the right images, classes and losses, without a download."""

from __future__ import annotations

import sys

import pytest
import torch

from dnnmem.estimator.errors import DnnmemError
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve
from dnnmem.profilers.targets.vision import image_loss

pytest.importorskip("torchvision")
pytest.importorskip("timm")


def target_of(name, batch_size=2, **args):
    return resolve(Request(target=name, batch_size=batch_size, args=args))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("torchvision:resnet18", {"image_size": "32", "num_classes": "5"}),
        ("torchvision:vit_b_32", {"image_size": "32", "num_classes": "5"}),
        ("timm:resnet18", {"img_size": "32", "num_classes": "5", "in_chans": "1"}),
        ("timm:vit_tiny_patch16_224", {"img_size": "32", "num_classes": "5", "drop_path_rate": "0.1"}),
    ],
)
def test_a_classifier_trains_at_the_size_given(name, args):
    target = target_of(name, batch_size=3, **args)
    model, (images, labels) = target.make_model(), target.make_batch()
    channels = int(args.get("in_chans", 3))
    assert images.shape == (3, channels, 32, 32)
    assert labels.shape == (3,)
    assert labels.max() < 5
    assert model.training
    target.train_step(model, (images, labels), target.make_optimizer(model.parameters()))
    assert target.batch["image"] == f"{channels}x32x32"
    assert target.batch["classes"] == 5
    assert target.rescale(1, None).make_batch()[0].shape == (1, channels, 32, 32)


@pytest.mark.parametrize(
    ("name", "image", "parameters"),
    [
        # parameter counts as torchvision's weights metadata and timm's published results list them
        ("torchvision:resnet50", "3x224x224", 25_557_032),
        ("torchvision:efficientnet_v2_s", "3x384x384", 21_458_488),
        ("torchvision:vit_h_14", "3x224x224", 632_045_800),
        ("timm:vit_base_patch16_224", "3x224x224", 86_567_656),
    ],
)
def test_published_sizes_are_used_and_told(name, image, parameters):
    target = target_of(name)
    with torch.device("meta"):
        model = target.make_model()
    assert target.batch["image"] == image
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert image in target.notes[0]
    assert "1000 classes" in target.notes[0]


@pytest.mark.parametrize(("name", "weight", "heads"), [("inception_v3", 0.4, 1), ("googlenet", 0.3, 2)])
def test_auxiliary_classifiers_are_trained_too(name, weight, heads):
    # GIVEN the model's own output class, with equal scores in every head
    with torch.device("meta"):
        output = target_of(f"torchvision:{name}").make_model()(torch.empty(2, 3, 299, 299))
    scores, labels = torch.randn(2, 4), torch.tensor([1, 2])
    equal = type(output)(*[scores for _ in output])
    # WHEN the loss is taken
    loss = image_loss(equal, (torch.empty(0), labels))
    # THEN each auxiliary head counts with its weight
    one = torch.nn.functional.cross_entropy(scores, labels)
    assert loss.item() == pytest.approx(one.item() * (1 + weight * heads))


BAD = [
    ("torchvision:resnet51", {}, 2, "torchvision has no model 'resnet51'", "resnet50"),
    ("torchvision:zzzz", {}, 2, "torchvision has no model 'zzzz'", "list_models"),
    ("torchvision:fasterrcnn_resnet50_fpn", {}, 4, "is a detection model", "dnnmem init"),
    ("torchvision:fcn_resnet50", {}, 4, "is a segmentation model", "dnnmem init"),
    ("torchvision:resnet18", {"width": "3"}, 2, "--arg width is not known: torchvision:resnet18 takes", ""),
    ("torchvision:resnet18", {"num_classes": "x"}, 2, "wants int", "num_classes"),
    ("torchvision:resnet18", {"image_size": "big"}, 2, "is no number of pixels", "image_size=224"),
    ("timm:resnet51", {}, 2, "timm has no model 'resnet51'", "resnet50"),
    ("timm:hf-hub:timm/resnet50", {}, 2, "timm has no model", "resnet50"),
    ("timm:resnet50.no_such_tag", {}, 2, "Invalid pretrained tag", "timm:resnet50"),
    ("timm:vit_base_patch14_dinov2", {}, 2, "is published without classes", "num_classes=1000"),
    ("timm:resnet50", {"depht": "3"}, 2, "--arg depht is not known", ""),
]


@pytest.mark.parametrize(("name", "args", "exit_code", "said", "hint"), BAD)
def test_a_bad_name_or_argument_is_one_message(name, args, exit_code, said, hint):
    with pytest.raises(DnnmemError) as caught:
        target_of(name, **args)
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == exit_code


def test_what_the_library_itself_refuses_is_a_model_error():
    with pytest.raises(DnnmemError, match="torchvision:resnet18 failed") as caught:
        target_of("torchvision:resnet18", width_per_group="128").make_model()
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("name", "library"), [("torchvision:resnet18", "torchvision"), ("timm:resnet18", "timm")])
def test_a_library_that_is_not_installed_names_its_extra(monkeypatch, name, library):
    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(DnnmemError) as caught:
        target_of(name)
    assert caught.value.message == f"{library} is not installed"
    assert 'pip install "dnnmem[vision]"' in caught.value.hint
    assert caught.value.exit_code == 2
