"""Every architecture at the smallest images that it takes."""

MODELS = {  # the smallest images that each takes; batch norm needs a few values a channel
    "lenet": {},
    "lenet5": {},
    "harley_lenet": {},
    "alexnet": {"input_size": 63},
    "alexnet_2012": {"input_size": 67},
    "zfnet": {"input_size": 63},
    "googlenet": {"input_size": 64, "aux": True},
    "googlenet_paper": {"input_size": 80, "aux": True},
    "vgg16": {"input_size": 32},
    "vgg16_bn": {"input_size": 32},
    "vgg19": {"input_size": 32},
    "resnet18": {"input_size": 64},
    "resnet34": {"input_size": 64},
    "resnet50": {"input_size": 64},
    "densenet121": {"input_size": 64},
}
