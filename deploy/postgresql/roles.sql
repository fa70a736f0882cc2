-- Database roles of customer-actors, one per kind of process, each with the least it needs.
--
-- Run it in the service's own database as a superuser, before the first `customer-actors migrate` and again after
-- every one (tables that are not there yet are left out). It may be repeated at any time; what was granted to these
-- roles otherwise is taken back. It holds no passwords: nobody logs in as these roles, but as members of them, e.g.
--
--     psql "$ADMIN_URL" -f deploy/postgresql/roles.sql
--     CREATE ROLE shop_ingest LOGIN PASSWORD '...' IN ROLE customer_actors_ingest;
--
--   customer_actors_owner      customer-actors migrate                 owns the schema
--   customer_actors_ingest     customer-actors ingest                  appends to streams, registry and quarantine
--   customer_actors_worker     dramatiq customer_actors.actors.main:setup   the actors and the nightly jobs
--   customer_actors_scheduler  python -m scheduler                     claims nightly slots
--   customer_actors_operator   credit, loyalty, held, quarantine retry, rebuild   as a worker, and records who did what
--   customer_actors_reader     show, explain, status, audit, doctor, health      reads
--
-- Events, ledgers and operators' actions: nobody but the owner may UPDATE, DELETE or TRUNCATE them, and the owner is
-- refused by triggers.

DO $roles$
DECLARE
    each text;
BEGIN
    FOREACH each IN ARRAY ARRAY['owner', 'ingest', 'worker', 'scheduler', 'operator', 'reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'customer_actors_' || each) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', 'customer_actors_' || each);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), 'customer_actors_' || each);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', 'customer_actors_' || each);
    END LOOP;
END
$roles$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT CREATE ON SCHEMA public TO customer_actors_owner;
-- Advancing a customer is what operators' commands end with.
GRANT customer_actors_worker TO customer_actors_operator;

DO $tables$
DECLARE
    each record;
    tables CONSTANT text[] := ARRAY[
        'organization', 'customer', 'event', 'event_payload', 'sale', 'payment_key', 'command_key', 'quarantine', 'bell',
        'stats_state', 'loyalty_state', 'loyalty_entry', 'credit_state', 'credit_usage', 'credit_payment',
        'credit_allocation', 'customer_segment', 'rfm_cuts', 'held_group', 'rules', 'operator_action', 'beat', 'job_run',
        'job_chunk', 'credit_drift', 'credit_ageing', 'schema_migration'
    ];
BEGIN
    FOR each IN SELECT name FROM unnest(tables) AS name WHERE to_regclass('public.' || name) IS NOT NULL LOOP
        EXECUTE format('ALTER TABLE public.%I OWNER TO customer_actors_owner', each.name);
        EXECUTE format('REVOKE ALL ON public.%I FROM PUBLIC, customer_actors_ingest, customer_actors_worker, '
            'customer_actors_scheduler, customer_actors_operator, customer_actors_reader', each.name);
        EXECUTE format('GRANT SELECT ON public.%I TO customer_actors_worker, customer_actors_reader', each.name);
    END LOOP;
    IF to_regprocedure('public.refuse_change()') IS NOT NULL THEN
        ALTER FUNCTION public.refuse_change() OWNER TO customer_actors_owner;
    END IF;

    FOR each IN
        SELECT role, name, privileges
        FROM (VALUES
            -- Appending: ingest, the credit reconciliation of the workers, and operators' commands.
            ('ingest worker', 'SELECT, INSERT', 'rules'),
            ('ingest worker', 'SELECT, INSERT, UPDATE (currency), DELETE', 'organization'),
            ('ingest worker', 'SELECT, INSERT, UPDATE (head, head_stats, head_loyalty, head_credit)', 'customer'),
            ('ingest worker', 'INSERT', 'event event_payload bell'),
            ('ingest worker', 'INSERT', 'stats_state loyalty_state credit_state customer_segment'),
            ('ingest worker', 'SELECT, INSERT, UPDATE (customer_id, amount_minor, sold_channel, sold_reference, '
                'position, occurred_at_us, on_credit, cancelled, alias, charged)', 'sale'),
            ('ingest worker', 'SELECT, INSERT, UPDATE (amount_minor), DELETE', 'payment_key'),
            ('ingest worker', 'SELECT, INSERT, UPDATE (customer_id, points), DELETE', 'command_key'),
            ('ingest operator', 'SELECT, INSERT, UPDATE (seen, last_seen_us, code, reason, organization_id, resolved_us, '
                'outcome)', 'quarantine'),
            -- Every process says that it lives, and must know the schema it works on.
            ('ingest worker scheduler', 'SELECT, INSERT, UPDATE, DELETE', 'beat'),
            ('ingest scheduler', 'SELECT', 'schema_migration'),
            -- The actors: states change, facts are added; FOR UPDATE needs UPDATE of a column.
            ('worker', 'UPDATE', 'stats_state loyalty_state credit_state customer_segment'),
            ('worker', 'INSERT', 'loyalty_entry credit_allocation'),
            ('worker', 'INSERT, UPDATE (outstanding_minor, cancelled_position)', 'credit_usage'),
            ('worker', 'INSERT, UPDATE (unapplied_minor)', 'credit_payment'),
            ('worker', 'INSERT, UPDATE, DELETE', 'held_group'),
            ('worker', 'DELETE', 'bell'),
            -- The nightly jobs.
            ('worker', 'INSERT', 'rfm_cuts credit_drift credit_ageing'),
            ('worker', 'UPDATE (planned_us, done_us, failures, failed_us, error, chunks, examined, changed)', 'job_run'),
            ('worker', 'INSERT, DELETE, UPDATE (done_us, examined, changed)', 'job_chunk'),
            ('scheduler', 'SELECT, INSERT', 'job_run'),
            ('scheduler', 'SELECT', 'job_chunk'),
            -- Operators: what they did is recorded and stays.
            ('operator', 'INSERT', 'operator_action')
        ) AS granted (roles, privileges, names),
            string_to_table(roles, ' ') AS role,
            string_to_table(names, ' ') AS name
        WHERE to_regclass('public.' || name) IS NOT NULL
    LOOP
        EXECUTE format('GRANT %s ON public.%I TO %I', each.privileges, each.name, 'customer_actors_' || each.role);
    END LOOP;
END
$tables$;
