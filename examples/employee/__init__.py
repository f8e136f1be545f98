"""Departments, employees and their salaries: Flask, sync, served by waitress."""
