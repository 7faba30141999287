"""The first hour: what tables are for, a starter configuration, and what is wrong with data or machine."""
