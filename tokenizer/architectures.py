"""The kinds of encoder and decoder, by the name that a config gives."""

from .conv import ConvDecoder, ConvEncoder
from .vitamin import Decoder, Encoder

ARCHITECTURES = {"vitamin": (Encoder, Decoder), "conv": (ConvEncoder, ConvDecoder)}
