"""Everything around the metrics that is made from their declarations: rules, their tests, dashboard, pages."""
