"""Small layers of attentions: they compute in the type of their weights, also under autocast."""

from torch import Tensor, nn

from leanconv.ops.exact import conv2d_in_own_type, linear_in_own_type


class ExactConv2d(nn.Conv2d):
    """`nn.Conv2d`, 1×1 with stride 1, that autocast does not round."""

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O H W
        return conv2d_in_own_type(x, self.weight, self.bias)


class ExactLinear(nn.Linear):
    """`nn.Linear` that autocast does not round."""

    def forward(self, x: Tensor) -> Tensor:  # N C -> N O
        return linear_in_own_type(x, self.weight, self.bias)
