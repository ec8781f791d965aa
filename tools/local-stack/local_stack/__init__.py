"""Apache Kafka, PostgreSQL and all of Sendwhy on one machine, from packages, without Docker."""
