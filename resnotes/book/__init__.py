"""The book: the ledger of claims, the notebooks and their execution, the report and the index."""
