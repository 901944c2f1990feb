"""One database of our own: tables, migrations, and one small module for each kind of row.

`database` opens it, `tables` says what is in it, `migrate` brings an older one up to date. Then
`audit`, `locks`, `preferences`, `predictions` and `tokens`; `owner` names a process and needs no
SQL. Nothing here knows the zoo, and nothing is imported before it is asked for.
"""
