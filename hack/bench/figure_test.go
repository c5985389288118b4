package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var (
	ratioAtLeast = &aim{ofRatio, atLeast, 0.5}
	ratioAtMost  = &aim{ofRatio, atMost, 2}
	valueAtMost  = &aim{ofValue, atMost, 200}
)

// measuredFigure is one with a limit.
func measuredFigure(value, limit *series, a *aim) figure {
	return newFigure("case", "devices/s", value.median()).beside(limit.median(), "the least").aiming(a)
}

func TestVerdict(t *testing.T) {
	for name, tc := range map[string]struct {
		figure figure
		want   verdict
	}{
		"at least: above":       {measuredFigure(seriesOf(60), seriesOf(100), ratioAtLeast), met},
		"at least: just":        {measuredFigure(seriesOf(50), seriesOf(100), ratioAtLeast), met},
		"at least: below":       {measuredFigure(seriesOf(49.99), seriesOf(100), ratioAtLeast), missed},
		"at most: below":        {measuredFigure(seriesOf(150), seriesOf(100), ratioAtMost), met},
		"at most: just":         {measuredFigure(seriesOf(200), seriesOf(100), ratioAtMost), met},
		"at most: above":        {measuredFigure(seriesOf(200.01), seriesOf(100), ratioAtMost), missed},
		"a value: below":        {newFigure("peak", "MiB", seriesOf(199).median()).aiming(valueAtMost), met},
		"a value: above":        {newFigure("peak", "MiB", seriesOf(201).median()).aiming(valueAtMost), missed},
		"a value and a limit":   {measuredFigure(seriesOf(150), seriesOf(1), valueAtMost), met},
		"no aim":                {measuredFigure(seriesOf(1), seriesOf(100), nil), ""},
		"a ratio without limit": {newFigure("case", "ms", seriesOf(1).median()).aiming(ratioAtMost), notMeasured},
		"a difference of 0":     {newDifference("added", seriesOf(3).median(), seriesOf(3).median()).aiming(valueAtMost), met},
		"less than nothing":     {newDifference("added", seriesOf(2).median(), seriesOf(3).median()).aiming(valueAtMost), met},
		"a greater difference":  {newDifference("added", seriesOf(300).median(), seriesOf(3).median()).aiming(valueAtMost), missed},
		"a literal of Inf":      {figure{Value: math.Inf(1), Aim: &aim{ofValue, atLeast, 1}}, notMeasured},
		"a literal of NaN":      {figure{Value: math.NaN(), Aim: valueAtMost}, notMeasured},
	} {
		if got := tc.figure.verdict(); got != tc.want {
			t.Errorf("%s: %q, want %q: %+v", name, got, tc.want, tc.figure)
		}
	}
}

// Whatever is missing, on whichever side and whatever the aim, the verdict says so, and
// so do the table and the file.
func TestNotMeasured(t *testing.T) {
	failedRound := seriesOf(100, 100)
	failedRound.add(100, errors.New("the broker refuses the writer"))
	good := seriesOf(100, 100, 100)
	for name, bad := range map[string]*series{
		"failed in one round of three": failedRound,
		"0":                            seriesOf(0),
		"negative":                     seriesOf(-5),
		"NaN":                          seriesOf(math.NaN()),
		"Inf":                          seriesOf(math.Inf(1)),
		"no round":                     {},
	} {
		for _, a := range []*aim{ratioAtLeast, ratioAtMost, valueAtMost, {ofValue, atLeast, 0}, nil} {
			for side, f := range map[string]figure{
				"limit": measuredFigure(good, bad, a), "value": measuredFigure(bad, good, a), "both": measuredFigure(bad, bad, a),
			} {
				if got := f.verdict(); got != notMeasured || f.Ratio != 0 {
					t.Errorf("%s %s, aim %v: verdict %q, ratio %v, want %q and none", side, name, a, got, f.Ratio, notMeasured)
				}
				checkShown(t, f)
			}
		}
	}
}

// checkShown checks that the table and the file say that f was not measured.
func checkShown(t *testing.T, f figure) {
	t.Helper()
	var table bytes.Buffer
	show(&table, []figure{f})
	if !strings.Contains(table.String(), "not measured (") || strings.Contains(table.String(), " met") {
		t.Errorf("the table is %s", table.String())
	}
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := save(path, []figure{f}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var saved []struct {
		Verdict, NotMeasured string
		Ratio                *float64
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		t.Fatal(err)
	}
	if len(saved) != 1 || saved[0].Verdict != string(notMeasured) || saved[0].NotMeasured == "" || saved[0].Ratio != nil {
		t.Errorf("the file is %s", text)
	}
}

// The file says what is aimed at as numbers, and the ratio is the measured over the limit
// for both directions.
func TestSaved(t *testing.T) {
	text, err := json.Marshal(newFigure("first message", "ms", seriesOf(30).median()).beside(seriesOf(20).median(), "bare").aiming(ratioAtMost))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"case":"first message","value":30,"unit":"ms","limit":20,"limitIs":"bare","ratio":1.5,` +
		`"aim":{"of":"ratio","direction":"\u003c=","bound":2},"verdict":"met"}`
	if string(text) != want {
		t.Errorf("saved as %s, want %s", text, want)
	}
	var table bytes.Buffer
	show(&table, []figure{measuredFigure(seriesOf(40), seriesOf(100), ratioAtLeast), newFigure("none", "MiB", seriesOf(5).median())})
	lines := strings.Split(strings.TrimSpace(table.String()), "\n")
	for i, want := range []string{
		"case measured unit limit ratio aim verdict",
		"case 40.0 devices/s 100.0 0.40 ratio >= 0.5 missed",
		"none 5.0 MiB - - -",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d of the table is %q, want %q", i, got, want)
		}
	}
}

// sizes are figures of a small and a large run, all aims of which are met.
func sizes() (base, large postgresFigures) {
	of := func(devices int) postgresFigures {
		rate := measuredFigure(seriesOf(90), seriesOf(100), ratioAtLeast)
		return postgresFigures{devices: devices, publish: rate, update: rate, peak: newFigure("peak", "MiB", seriesOf(100).median())}
	}
	return of(10_000), of(1_000_000)
}

func TestBySize(t *testing.T) {
	broken := &series{err: errors.New("the connection was lost")}
	type change func(base, large *postgresFigures)
	for name, tc := range map[string]struct {
		change change
		want   [3]verdict // PublishMessage, UpdateShadow, memory
	}{
		"as good": {func(_, _ *postgresFigures) {}, [3]verdict{met, met, met}},
		"all worse": {func(_, large *postgresFigures) {
			large.publish = measuredFigure(seriesOf(85), seriesOf(100), nil)
			large.update = measuredFigure(seriesOf(80), seriesOf(100), nil)
			large.peak = newFigure("peak", "MiB", seriesOf(121).median())
		}, [3]verdict{missed, missed, missed}},
		// What counts is the ratio to the limit: that fell as well.
		"slower with its limit": {func(_, large *postgresFigures) {
			large.publish = measuredFigure(seriesOf(9), seriesOf(10), nil)
		}, [3]verdict{met, met, met}},
		"no limit of the large": {func(_, large *postgresFigures) {
			large.publish = measuredFigure(seriesOf(90), broken, nil)
		}, [3]verdict{notMeasured, met, met}},
		"no limit of the small": {func(base, _ *postgresFigures) {
			base.update = measuredFigure(seriesOf(90), broken, nil)
		}, [3]verdict{met, notMeasured, met}},
		"no value of the small": {func(base, _ *postgresFigures) {
			base.publish = measuredFigure(broken, seriesOf(100), nil)
		}, [3]verdict{notMeasured, met, met}},
		"no memory of the small": {func(base, _ *postgresFigures) {
			base.peak = newFigure("peak", "MiB", reading{})
		}, [3]verdict{met, met, notMeasured}},
		"no memory of the large": {func(_, large *postgresFigures) {
			large.peak = newFigure("peak", "MiB", reading{})
		}, [3]verdict{met, met, notMeasured}},
		"no small run": {func(base, _ *postgresFigures) { *base = postgresFigures{} }, [3]verdict{notMeasured, notMeasured, notMeasured}},
	} {
		base, large := sizes()
		tc.change(&base, &large)
		derived := bySize(base, large)
		for i, want := range tc.want {
			f := derived[i]
			if got := f.verdict(); got != want {
				t.Errorf("%s: %s: %q, want %q: %+v", name, f.Case, got, want, f)
			}
			if want == notMeasured {
				checkShown(t, f)
			}
		}
	}
}
