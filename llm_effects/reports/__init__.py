"""Usage reports and their exports."""

from llm_effects.reports.exports import to_csv as to_csv
from llm_effects.reports.exports import to_json_lines as to_json_lines
from llm_effects.reports.usage import Dimension as Dimension
from llm_effects.reports.usage import Percentiles as Percentiles
from llm_effects.reports.usage import UsageReport as UsageReport
from llm_effects.reports.usage import UsageRow as UsageRow
from llm_effects.reports.usage import usage_report as usage_report
