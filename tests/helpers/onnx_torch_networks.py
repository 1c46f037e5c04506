"""Networks of PyTorch that its exporters turn into many kinds of nodes."""

import torch
from torch import nn
from torch.nn import functional as F


class Mobile(nn.Module):
    """Normalisation, ReLU6, depthwise and dilated convolutions, squeeze and excitation, SiLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.bn, self.pointwise = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.prelu, self.fc, self.bn1 = nn.PReLU(12), nn.Linear(12, 16), nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 5, bias=False)

    def forward(self, x):
        x = x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
        y = self.stem(x / torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1))
        y = self.pointwise(F.hardswish(F.relu(y) + self.bn(self.depthwise(y))))
        weights = self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = self.prelu(y * F.hardsigmoid(weights))
        y = F.silu(F.pad(y, (1, 2, 0, 1))).mean((2, 3))
        return self.out(torch.tanh(self.bn1(self.fc(y))))


class Classic(nn.Module):
    """Pools of every kind, channels cut, shuffled and joined, a residual, two outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.beside = nn.Conv2d(3, 6, (3, 5), (2, 1), (1, 2)), nn.Conv2d(6, 6, 1)
        self.norm, self.drop, self.fc = nn.BatchNorm2d(6), nn.Dropout(0.3), nn.Linear(45 * 6, 10)

    def forward(self, x):
        y = F.max_pool2d(F.relu(self.conv(x)), 3, 2, 1, ceil_mode=True)
        y = F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
        a, b = torch.chunk(y, 2, 1)
        y = torch.cat([b, a], 1)
        y = y.view(y.size(0), 2, 3, 5, 9).transpose(1, 2).reshape(y.size(0), 6, 5, 9)
        y = torch.sigmoid(y + self.norm(self.beside(y)))
        y = self.drop(y.reshape(y.size(0), -1))
        return F.softmax(self.fc(y), -1), y


NETWORKS = {"mobile": Mobile, "classic": Classic}
