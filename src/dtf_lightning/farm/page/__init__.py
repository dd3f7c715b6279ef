"""The farm's page: screens for a browser, live, which every coordinator serves."""
