"""`manybeam zoo`: which ensembles there are, how good they are, and what is done with them."""
