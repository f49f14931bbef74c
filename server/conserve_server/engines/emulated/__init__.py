"""An engine that speaks vLLM's wire with modelled timing, for tests, load tests and a quick look.

Everything it says is marked as emulated. It holds no model: what works here is shown to fit
the wire and the protocol, not to work on vLLM. Life of a request: `generation.py` reads it
in its dialect (`chat.py`, `completion.py`), plans the answer (`answer.py`) and queues a
sequence; `loop.py` steps it; `handover.py` moves KV between engines.
"""

from conserve_server.engines.emulated.app import create_emulated_engine
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.faults import Fault
from conserve_server.engines.emulated.script import Rule, ScriptedCall, load_script
from conserve_server.engines.emulated.server import EmulatedEngineServer, run_emulated, serve_emulated
from conserve_server.engines.emulated.timing import EmulatedTiming

__all__ = [
    "EmulatedConfig",
    "EmulatedEngineServer",
    "EmulatedTiming",
    "Fault",
    "Rule",
    "ScriptedCall",
    "create_emulated_engine",
    "load_script",
    "run_emulated",
    "serve_emulated",
]
