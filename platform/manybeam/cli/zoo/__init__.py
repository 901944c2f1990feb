"""`manybeam zoo`: list ensembles, show their scores, change and exchange them."""
