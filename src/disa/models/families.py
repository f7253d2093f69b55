"""The families by name: how their models are built, and what their official parameter names are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from disa.models.bitdance import names as bitdance
from disa.models.bitdance.config import BitDanceConfig
from disa.models.bitdance.model import BitDance
from disa.models.emigm import names as emigm
from disa.models.emigm.config import EMIGMConfig
from disa.models.emigm.model import EMIGM
from disa.models.flowar import names as flowar
from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR
from disa.models.harmon import names as harmon
from disa.models.harmon.config import HarmonConfig
from disa.models.harmon.model import Harmon
from disa.models.harmon.text import Text as HarmonText
from disa.models.mar import names as mar
from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.naming import NameMap
from disa.models.nextstep import names as nextstep
from disa.models.nextstep.config import NextStepConfig
from disa.models.nextstep.model import NextStep
from disa.models.nextstep.text import Text as NextStepText
from disa.models.prompting import PromptText
from disa.models.unipic import names as unipic
from disa.models.unipic.config import UniPicConfig
from disa.models.unipic.model import UniPic
from disa.models.unipic.text import Text as UniPicText
from disa.models.xar import names as xar
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR

Model = MAR | FlowAR | XAR | Harmon | BitDance | NextStep | UniPic | EMIGM


@dataclass(frozen=True)
class Family:
    """What the models of one paper share."""

    config: type
    """The class of their architectures."""
    model: type[Model]
    """From an architecture to a model without weights."""
    official_names: Callable[[Any], NameMap]
    """From an architecture to our parameter names and the official ones."""
    text: type[PromptText] | None = None
    """What makes token ids of prompts, in families that take them."""


FAMILIES = {
    "mar": Family(MARConfig, MAR, mar.official_names),
    "flowar": Family(FlowARConfig, FlowAR, flowar.official_names),
    "xar": Family(XARConfig, XAR, xar.official_names),
    "harmon": Family(HarmonConfig, Harmon, harmon.official_names, HarmonText),
    "bitdance": Family(BitDanceConfig, BitDance, bitdance.official_names),
    "nextstep": Family(NextStepConfig, NextStep, nextstep.official_names, NextStepText),
    "unipic": Family(UniPicConfig, UniPic, unipic.official_names, UniPicText),
    "emigm": Family(EMIGMConfig, EMIGM, emigm.official_names),
}
