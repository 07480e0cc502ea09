"""Usage reports and their exports, and the values of backtests."""

from llm_effects.reports.backtests import Backtest as Backtest
from llm_effects.reports.backtests import Estimate as Estimate
from llm_effects.reports.backtests import Figures as Figures
from llm_effects.reports.backtests import backtest_page as backtest_page
from llm_effects.reports.exports import to_csv as to_csv
from llm_effects.reports.exports import to_json_lines as to_json_lines
from llm_effects.reports.html import usage_page as usage_page
from llm_effects.reports.usage import UsageOverview as UsageOverview
from llm_effects.reports.usage import UsageReport as UsageReport
from llm_effects.reports.usage import UsageRow as UsageRow
from llm_effects.reports.usage import usage_overview as usage_overview
from llm_effects.reports.usage import usage_report as usage_report
from llm_effects.values.usage import Dimension as Dimension
from llm_effects.values.usage import Percentiles as Percentiles
