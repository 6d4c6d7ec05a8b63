//! Pages of reports as odd as they come.

use super::{Load, LoadStep, Replay, Report, Response, Side, Simulation, SimulationPoint, Wire, WireMemory, WirePoint, WireRate};

const ODD: [f64; 7] = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, 5e-324];

fn side(name: &str, mean_ms: f64, responses: Vec<Response>) -> Side {
    Side {
        name: name.into(),
        mean_ms,
        p50_ms: mean_ms,
        p99_ms: mean_ms,
        fetch_ms: mean_ms,
        hits: 3,
        misses: 1,
        responses,
        ..Side::default()
    }
}

fn response(at_s: f64, response_ms: f64) -> Response {
    Response { at_s, response_ms, hit_share: 0.5, ok: true, ..Response::default() }
}

fn replay(trace: &str, sides: Vec<Side>) -> Report {
    Report { replays: vec![Replay { trace: trace.into(), requests: 4, span_s: 1.0, servers: 1, sides }], ..Report::default() }
}

fn simulation(points: impl IntoIterator<Item = (f64, f64)>) -> Report {
    let point = |(capacity_share, rate): (f64, f64)| SimulationPoint {
        policy: "LRU".into(),
        capacity_share,
        capacity_bytes: 1 << 20,
        hit_rate_by_requests: rate,
        hit_rate_by_bytes: rate,
        decoded_share: None,
    };
    let points = points.into_iter().map(point).collect();
    Report { simulations: vec![Simulation { trace: "t".into(), footprint_bytes: 1 << 30, points }], ..Report::default() }
}

fn load(steps: impl IntoIterator<Item = (f64, f64)>) -> Report {
    let step = |(offered_per_s, time): (f64, f64)| LoadStep {
        offered_per_s,
        achieved_per_s: offered_per_s,
        p50_ms: time,
        p90_ms: time,
        p99_ms: time,
        p999_ms: time,
        max_ms: time,
        mb_per_s: time,
        late_p99_ms: time,
        ..LoadStep::default()
    };
    let steps = steps.into_iter().map(step).collect();
    Report { loads: vec![Load { url: "grpc://127.0.0.1:1".into(), columns: 4, servers: 1, steps }], ..Report::default() }
}

fn wire(number: f64) -> Report {
    let point = |side: &str, batch_rows| WirePoint {
        data: "numeric".into(),
        side: side.into(),
        batch_rows,
        gib_per_s: number,
        server_cpu_s_per_gib: number,
        client_cpu_s_per_gib: number,
        to_raw: Some(number),
        to_pyarrow: None,
    };
    let rate = |in_flight| WireRate { side: "a".into(), in_flight, requests_per_s: number, ..WireRate::default() };
    let wire = Wire {
        points: vec![point("a", None), point("b", Some(8_192))],
        rates: vec![rate(1), rate(16)],
        memory: vec![WireMemory { residency: "arrow".into(), accounted_bytes: 1 << 20, ..WireMemory::default() }],
    };
    Report { wire, ..Report::default() }
}

fn page(report: &Report) -> String {
    let html = report.to_html().unwrap();
    for wrong in ["NaN", "inf<", "#FCFC", "-2147483648"] {
        assert!(!html.contains(wrong), "{wrong} in {html}");
    }
    html
}

fn headings(html: &str) -> Vec<&str> {
    html.split("<h2>").skip(1).filter_map(|rest| rest.split("</h2>").next()).collect()
}

#[test]
fn a_section_is_there_only_with_data() {
    assert_eq!(headings(&page(&Report::default())), Vec::<&str>::new());
    let mut all = replay("t", vec![side("direct", 5.0, vec![response(0.0, 5.0), response(1.0, 7.0)])]);
    all.simulations = simulation([(0.1, 0.2), (1.0, 0.9)]).simulations;
    assert_eq!(headings(&page(&all)), ["Replay", "Simulation"]);
    all.loads = load([(10.0, 1.0), (20.0, 2.0)]).loads;
    let html = page(&all);
    assert_eq!(headings(&html), ["Replay", "Simulation", "Load"]);
    assert_eq!(html.matches("<figure>").count(), 6);
    assert_eq!(html.matches("role=\"img\" aria-label=\"").count(), 6);
    assert_eq!(html.matches("<figcaption>").count(), 6);
    let html = page(&wire(2.0));
    assert_eq!(headings(&html), ["The wire"]);
    assert_eq!(html.matches("<figure>").count(), 3);
}

#[test]
fn strings_are_escaped_everywhere() {
    let evil = "<script>alert(\"1\")</script>&'";
    let mut report = replay(evil, vec![side(evil, 5.0, vec![response(0.0, 5.0)])]);
    report.simulations = simulation([(0.5, 0.5)]).simulations;
    report.simulations[0].trace = evil.into();
    report.simulations[0].points[0].policy = evil.into();
    report.loads = load([(1.0, 1.0)]).loads;
    report.loads[0].url = evil.into();
    for text in [&mut report.title, &mut report.generated_at, &mut report.command, &mut report.machine] {
        *text = evil.into();
    }
    report.notes = vec![evil.into()];
    let html = page(&report);
    assert!(!html.contains("<script"));
    assert!(!html.contains("alert(\""), "a quote would end an attribute");
    assert!(html.contains("&lt;script&gt;"));
}

#[test]
fn the_page_names_no_host_and_loads_nothing() {
    let html = page(&replay("t", vec![side("direct", 5.0, vec![response(0.0, 5.0)])]));
    for outside in ["://", "src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn empty_lists_make_a_page() {
    assert!(page(&replay("t", Vec::new())).contains("Nothing to plot."));
    assert!(page(&replay("t", vec![side("direct", 5.0, Vec::new())])).contains("Nothing to plot."));
    assert!(page(&simulation([])).contains("Nothing to plot."));
    assert!(page(&load([])).contains("Nothing to plot."));
}

#[test]
fn one_measurement_is_drawn_as_a_mark() {
    assert!(page(&replay("t", vec![side("flightcache", 5.0, vec![response(0.0, 0.0)])])).contains("<circle"));
    assert!(page(&simulation([(0.0, 0.0)])).contains("<circle"));
    assert!(page(&load([(0.0, 0.0)])).contains("<circle"));
}

#[test]
fn odd_numbers_make_a_page() {
    for one in ODD {
        page(&wire(one));
        for other in ODD {
            page(&replay(
                "t",
                vec![side("direct", one, vec![response(one, other), response(other, one)]), side("b", other, Vec::new())],
            ));
            page(&simulation([(one, other), (other, one)]));
            page(&load([(one, other), (other, one)]));
        }
    }
}

#[test]
fn the_fastest_side_is_emphasised() {
    let sides = |means: &[f64]| {
        means.iter().map(|mean| side(&format!("side of {mean:.0}").replace("NaN", "none"), *mean, Vec::new())).collect()
    };
    let best = "<tr class=\"best\"><th class=\"name\" scope=\"row\">side of 2</th>";
    assert!(page(&replay("t", sides(&[5.0, 2.0, f64::NAN]))).contains(best));
    assert!(!page(&replay("t", sides(&[2.0]))).contains("class=\"best\""), "there is nothing to be faster than");
    let mut failed = replay("t", sides(&[1.0, 2.0, 5.0]));
    failed.replays[0].sides[0].errors = 4;
    assert!(page(&failed).contains(best), "failing fast is not fast");
}

#[test]
fn errors_are_red_only_if_there_are_any() {
    let mut report = replay("t", vec![side("direct", 5.0, Vec::new())]);
    assert!(!page(&report).contains("class=\"failed\""));
    report.replays[0].sides[0].errors = 2;
    assert!(page(&report).contains("<td class=\"failed\">2</td>"));
}

#[test]
fn a_name_keeps_its_line_style_in_every_trace() {
    let responses = || vec![response(0.0, 5.0), response(1.0, 6.0)];
    let mut report = replay("one", vec![side("direct", 5.0, responses()), side("flightcache", 2.0, responses())]);
    report.replays.push(Replay { trace: "two".into(), sides: vec![side("flightcache", 2.0, responses())], ..Replay::default() });
    let html = page(&report);
    let two = &html[html.find("<h3>two").unwrap()..];
    assert!(two.contains("stroke=\"var(--series-2)\"") && !two.contains("stroke=\"var(--series-1)\""));
}

#[test]
fn a_kind_of_request_that_did_not_occur_is_a_dash_and_none_in_json() {
    let kinds = Side { cold_ms: Some(41.0), joined_ms: None, repeat_ms: Some(7.0), ..side("direct", 5.0, Vec::new()) };
    let report = replay("t", vec![kinds]);
    let html = page(&report);
    let row = &html[html.find("scope=\"row\">direct").unwrap()..];
    let cells: Vec<&str> = row.split("<td>").skip(4).take(3).filter_map(|cell| cell.split("</td>").next()).collect();
    assert_eq!(cells, ["41.0", "–", "7.00"]);
    let json = serde_json::to_value(&report).unwrap();
    assert!(json["replays"][0]["sides"][0]["joined_ms"].is_null());
}

#[test]
fn a_report_survives_json() {
    let report = replay("t", vec![side("direct", 5.0, vec![response(0.5, 5.25)])]);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    // One of before requests were told apart in three, and lateness was kept.
    let mut before = serde_json::to_value(&report).unwrap();
    before["replays"][0]["sides"][0].as_object_mut().unwrap().remove("joined_ms");
    assert_eq!(serde_json::from_value::<Report>(before).unwrap(), report);
}
