"""The schema's Job and the first API key."""

from __future__ import annotations

import base64

from rendering import Chart, Rendered, name_of

from coffee_rt.domain.keys import parse_key


def job_name(rendered: Rendered) -> str:
    return name_of(rendered.one("Job", "migrate"))


def test_the_migration_is_a_plain_job_of_the_release(plain: Rendered) -> None:
    """A hook would run before bundled stores exist, and wait for them for ever."""
    job = plain.one("Job", "migrate")
    assert "helm.sh/hook" not in job["metadata"].get("annotations", {})
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["migrate"]
    assert plain.environment("migrate")["COFFEE_RT_DATABASE_URL"]


def test_another_release_makes_another_job_and_the_same_one_none(
    chart: Chart, plain: Rendered
) -> None:
    assert job_name(chart.render()) == job_name(plain)
    assert job_name(chart.render({"image": {"tag": "next"}})) != job_name(plain)
    assert job_name(chart.render({"migrate": {"runId": "again"}})) != job_name(plain)
    assert job_name(chart.render({"worker": {"replicas": 7}})) == job_name(plain)


def test_the_migration_waits_for_a_server_that_is_still_starting(plain: Rendered) -> None:
    assert float(plain.environment("migrate")["COFFEE_RT_MIGRATE_WAIT_SECONDS"]) >= 60


def test_the_first_api_key_is_made_and_given_to_the_migration(plain: Rendered) -> None:
    [secret] = [each for each in plain.of("Secret") if "api-key" in each.get("data", {})]
    key_id, key_secret = parse_key(base64.b64decode(secret["data"]["api-key"]).decode())
    assert len(key_id) == 12
    assert len(key_secret) == 43
    assert _key_secret(plain) == name_of(secret)


def test_a_key_made_before_is_used_and_none_is_rendered(chart: Chart) -> None:
    rendered = chart.render({"auth": {"existingSecret": "first-key"}})
    assert _key_secret(rendered) == "first-key"
    assert not [each for each in rendered.of("Secret") if "api-key" in each.get("data", {})]


def test_nothing_random_is_rendered_where_all_secrets_exist(chart: Chart) -> None:
    """What GitOps needs: two renders of the same values are the same."""
    first, second = (chart.render({}, "external-values.yaml") for _ in range(2))
    assert first.objects == second.objects


def test_without_a_first_key_nothing_of_it_is_rendered(chart: Chart) -> None:
    rendered = chart.render({"auth": {"enabled": False}})
    assert "COFFEE_RT_MIGRATE_KEY" not in rendered.environment("migrate")
    assert not list(rendered.of("Pod"))


def test_helm_test_follows_an_order_through_the_services(plain: Rendered) -> None:
    [pod] = plain.of("Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    [container] = pod["spec"]["containers"]
    assert container["args"][:2] == ["smoke", "http://shop-coffee-rt-order-api"]
    services = {name_of(each) for each in plain.of("Service")}
    for component in ("order-api", "query-api", "fanout"):
        assert f"shop-coffee-rt-{component}" in services


def _key_secret(rendered: Rendered) -> str:
    [container] = rendered.pod("migrate")["containers"]
    [variable] = [each for each in container["env"] if each["name"] == "COFFEE_RT_MIGRATE_KEY"]
    return str(variable["valueFrom"]["secretKeyRef"]["name"])
