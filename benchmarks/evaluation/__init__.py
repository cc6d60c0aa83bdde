"""Parts of the accuracy benchmark: data, forecasters, measures, report."""
