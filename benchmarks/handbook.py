"""Name the files and features of the Fraud Detection Handbook (Le Borgne et al. 2022)."""

WINDOWS = ("1DAY_WINDOW", "7DAY_WINDOW", "30DAY_WINDOW")
AGGREGATES = ("CUSTOMER_ID_NB_TX", "CUSTOMER_ID_AVG_AMOUNT", "TERMINAL_ID_NB_TX")
BASE_COLUMNS = (
    *("TX_AMOUNT", "TX_DURING_WEEKEND", "TX_DURING_NIGHT"),
    *(f"{aggregate}_{window}" for aggregate in AGGREGATES for window in WINDOWS),
)
"""Features that need no past labels."""
DATA_FILES = ("transactions-2018-07.parquet", "transactions-2018-08.parquet")
"""Files with a month of transactions each."""
