#!/bin/sh
# Permissions of customer-actors on RabbitMQ, one user per kind of process, each with the least it needs; and the policy
# that keeps messages with an unknown routing key. It may be repeated. It holds no passwords: first make the users, each
# with
#
#     rabbitmqctl add_user customer_actors_ingest        (asks for the password)
#
# and the same for _producer, _worker, _scheduler, _operator and _monitor. Then, where rabbitmqctl runs:
#
#     VHOST=shop sh deploy/rabbitmq/permissions.sh
#
#   _producer   the services that publish events: into the three exchanges, nothing else. Not into the default exchange,
#               which reaches every queue. Several publishers: one user each, with the same permissions.
#   _ingest     customer-actors ingest                           makes exchanges and queues, consumes, rings
#   _worker     dramatiq customer_actors.actors.main:setup       the queues between actors
#   _scheduler  python -m scheduler                              rings the nightly jobs
#   _operator   credit, loyalty, held, quarantine retry (--dead-letters too), doctor (which compares queues and
#               exchanges only as _ingest, who may declare them)
#   _monitor    status, health: looks at queues, may touch nothing
set -eu

vhost=${VHOST:-/}
rabbitmqctl=${RABBITMQCTL:-rabbitmqctl}

exchanges='order_events|pos_events|payment_events'
queues='customer_(order|pos|payment)_queue'
kept='customer_(dead_letter|unrouted)(_queue)?'
actors='(dispatcher|held|stats|loyalty|segmentation|credit|nightly|nightly_chunk)(\.DQ|\.XQ)?'
default='amq\.default'

permit() { # user, configure, write, read
    "$rabbitmqctl" --quiet set_permissions --vhost "$vhost" "customer_actors_$1" "$2" "$3" "$4"
}

permit producer '^$' "^($exchanges)\$" '^$'
permit ingest "^($exchanges|$queues|$kept|dispatcher(\.DQ|\.XQ)?)\$" "^($queues|$kept|$default)\$" \
    "^($exchanges|$queues|$kept|dispatcher(\.DQ|\.XQ)?)\$"
permit worker "^$actors\$" "^($actors|$default)\$" "^$actors\$"
permit scheduler '^nightly(\.DQ|\.XQ)?$' "^(nightly(\.DQ|\.XQ)?|$default)\$" '^nightly(\.DQ|\.XQ)?$'
permit operator "^($actors|customer_retry\..*|customer_probe)\$" \
    "^($queues|customer_retry\..*|customer_probe|customer_dead_letter|$default)\$" \
    "^($actors|customer_retry\..*|customer_dead_letter_queue)\$"
permit monitor '^$' '^$' '^$'

"$rabbitmqctl" --quiet set_policy --vhost "$vhost" --apply-to exchanges customer-actors-unrouted \
    "^($exchanges|customer_probe)\$" '{"alternate-exchange":"customer_unrouted"}'
