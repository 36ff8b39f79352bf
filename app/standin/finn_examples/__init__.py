"""Double of finn-examples 0.0.7: what it has for CIFAR-10, over the bit-exact overlays of BNN-PYNQ.

Where the real one may differ: its networks have the topology of BNN-PYNQ's, but FINN built them
from an export of Brevitas, which trained other weights, scales 8-bit pixels in another way, and
ends in TopK, whose order among equal scores is its own. So single images get other classes there,
and the accuracy is another. This double has the weights of BNN-PYNQ's parameter set "cifar10", and
the first of the highest scores. The real one also wants numpy <= 1.24.1 and pkg_resources.
It bundles what it needs of finn and qonnx, but not bitstring.

The set is looked for in $DISTRIBUTED_PYNQ_PARAMS and in params/ beside this file. The files below
bitfiles/ lie where installing the real one downloads bitstreams to.
"""
