"""Tools: ``tool``, ``Toolkit``, ``run_tools`` and its journal."""

from llm_effects.tools.by_schema import tools_by_schema as tools_by_schema
from llm_effects.tools.journal import resolve_tool_call as resolve_tool_call
from llm_effects.tools.run import run_tools as run_tools
from llm_effects.tools.steps import Approve as Approve
from llm_effects.tools.steps import Approved as Approved
from llm_effects.tools.steps import Refused as Refused
from llm_effects.tools.steps import ToolAnswer as ToolAnswer
from llm_effects.tools.steps import ToolEnd as ToolEnd
from llm_effects.tools.steps import ToolEvent as ToolEvent
from llm_effects.tools.steps import ToolFinished as ToolFinished
from llm_effects.tools.steps import ToolLimits as ToolLimits
from llm_effects.tools.steps import ToolOutcome as ToolOutcome
from llm_effects.tools.steps import ToolRun as ToolRun
from llm_effects.tools.steps import ToolSink as ToolSink
from llm_effects.tools.steps import ToolStarted as ToolStarted
from llm_effects.tools.steps import ToolStep as ToolStep
from llm_effects.tools.steps import Verdict as Verdict
from llm_effects.tools.tool import ToolFunction as ToolFunction
from llm_effects.tools.tool import Toolkit as Toolkit
from llm_effects.tools.tool import tool as tool
from llm_effects.tools.tool import tool_with_schema as tool_with_schema
from llm_effects.tools.tool import toolkit as toolkit
