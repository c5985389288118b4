package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	testingclock "k8s.io/utils/clock/testing"

	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/fleet/transfer"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
	"batchtask.dev/operator/internal/testobj"
)

func TestFleetImport(t *testing.T) {
	eachKind(t, func(t *testing.T, p *person, large int) {
		text, bad := many(large)
		name := file(t, text)

		wantDry(t, p, name, fmt.Sprintf("%d would be added, 0 updated, 0 unchanged, %d bad lines", large, bad))
		if _, notes, _ := p.call(t.Context(), nil, "fleet", "list", "door", "-o", "name"); strings.Contains(notes, "device-") {
			t.Errorf("after a dry run there are devices: %s", notes)
		}

		began := time.Now()
		out, notes, fault := p.call(t.Context(), nil, "fleet", "import", "door", "-f", name)
		t.Logf("%d devices in %v", large, time.Since(began))
		if want := fmt.Sprintf("%d added, 0 updated, 0 unchanged, %d bad lines\n", large, bad); out != want {
			t.Errorf("said %q, want %q", out, want)
		}
		if want := fmt.Sprintf("%d bad lines, see above", bad); fault != want {
			t.Errorf("ended with %q, want %q", fault, want)
		}
		wantBad(t, notes, bad)

		wantDry(t, p, name, fmt.Sprintf("0 would be added, 0 updated, %d unchanged, %d bad lines", large, bad))
		changed := strings.Replace(text, "device-000001,\n", "device-000001,true\nnew,\n", 1)
		wantDry(t, p, file(t, changed), fmt.Sprintf("1 would be added, 1 updated, %d unchanged, %d bad lines", large-1, bad))
		want := fmt.Sprintf("0 added, 0 updated, %d unchanged, %d bad lines\n", large, bad)
		began = time.Now()
		if out, _, _ := p.call(t.Context(), strings.NewReader(text), "fleet", "import", "door"); out != want {
			t.Errorf("again, from standard input: %q, want %q", out, want)
		}
		t.Logf("again in %v", time.Since(began))
		if names := p.must("", "fleet", "list", "door", "-o", "name"); strings.Count(names, "\n") != large {
			t.Errorf("%d devices are listed, want %d", strings.Count(names, "\n"), large)
		}
		if names := p.must("", "fleet", "list", "door", "-o", "name", "--filter", "-00000[13]$"); names != "device-000001\ndevice-000003\n" {
			t.Errorf("with a filter there are %q", names)
		}
	})
}

// wantDry makes a dry run of a file that has bad lines.
func wantDry(t *testing.T, p *person, name, want string) {
	t.Helper()
	out, _, fault := p.call(t.Context(), nil, "fleet", "import", "door", "-f", name, "--dry-run")
	if want += "; nothing was written\n"; out != want || fault == "" {
		t.Errorf("dry run: %q, %q; want %q", out, fault, want)
	}
}

// wantBad checks that the first hundred bad lines are told, and the others counted.
func wantBad(t *testing.T, notes string, bad int) {
	t.Helper()
	told := 0
	for line := range strings.Lines(notes) {
		if strings.HasPrefix(line, "line ") && strings.Contains(line, ": deviceName: a name is 1 to 48 letters") {
			told++
		}
	}
	if told != min(bad, maxBadShown) {
		t.Errorf("%d bad lines are told, of %d:\n%s", told, bad, notes)
	}
	if !strings.HasPrefix(notes, "line 102: deviceName: ") {
		t.Errorf("the first bad line is line 102, and it said:\n%.200s", notes)
	}
	more := fmt.Sprintf("%d more lines are bad and were not shown\n", bad-maxBadShown)
	if strings.HasSuffix(notes, more) != (bad > maxBadShown) {
		t.Errorf("want %q at the end of:\n%s", more, notes)
	}
}

// Ctrl-C ends an import at once, also one that waits for standard input, and the next
// one does the rest.
func TestFleetImportInterrupted(t *testing.T) {
	eachKind(t, func(t *testing.T, p *person, large int) {
		text, bad := many(large)
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		silent, writer := io.Pipe()
		defer func() { _ = writer.Close() }()
		go func() { _, _ = io.WriteString(writer, text[:len(text)/2]) }() // some batches, and then nothing
		ended := make(chan string, 1)
		go func() {
			_, _, fault := p.call(ctx, silent, "fleet", "import", "door")
			ended <- fault
		}()
		p.waitForDevices("door")
		interrupt()
		fault := <-ended
		if !strings.HasPrefix(fault, "interrupted: all is done up to line ") || !strings.HasSuffix(fault, "the same command again does the rest") {
			t.Fatalf("ended with %q", fault)
		}
		there := strings.Count(p.must("", "fleet", "list", "door", "-o", "name"), "\n")
		if there == 0 || there > large/2+1 {
			t.Errorf("%d devices are there, of %d", there, large)
		}
		// What was on its way to the server may have been written after that.
		var added, unchanged int
		out, _, _ := p.call(t.Context(), strings.NewReader(text), "fleet", "import", "door")
		_, err := fmt.Sscanf(out, fmt.Sprintf("%%d added, 0 updated, %%d unchanged, %d bad lines\n", bad), &added, &unchanged)
		if err != nil || added+unchanged != large || unchanged < there || unchanged > large/2+1 {
			t.Errorf("after %q with %d devices, the rest: %q (%v), of %d devices", fault, there, out, err, large)
		}
		if names := p.must("", "fleet", "list", "door", "-o", "name"); strings.Count(names, "\n") != large {
			t.Errorf("in the end %d devices are there, want %d", strings.Count(names, "\n"), large)
		}
	})
}

// What one fleet exports another imports, of either kind and in either format.
func TestFleetRoundTrip(t *testing.T) {
	p := newPerson(t)
	server := pgtest.Start(t)
	p.product("objects", "A", "")
	p.product("rows", "B", server.Database(t))
	p.product("objects-again", "C", "")
	p.product("rows-again", "D", server.Database(t))
	const devices = `{"deviceName":"Door:1","disabled":true,"version":12,"reported":{"n":12345678901234567890},"desired":{"state":"<open>, \"wide\""}}
{"deviceName":"door_1"}
{"deviceName":"door_2","version":1,"desired":{"a":[1,null,{"b":"ü"}]}}
`
	p.must(devices, "fleet", "import", "objects")
	from := "objects"
	for _, to := range []string{"rows", "objects-again", "rows-again"} {
		for _, format := range []string{"csv", "ndjson"} {
			out := p.must("", "fleet", "export", from, "--shadows", "--format", format)
			if format == "ndjson" && out != devices {
				t.Errorf("%s: %s", from, cmp.Diff(devices, out))
			}
			p.must(out, "fleet", "import", to, "--format", format)
			if again := p.must("", "fleet", "export", to, "--shadows", "--format", format); again != out {
				t.Errorf("%s to %s in %s (-want +got):\n%s", from, to, format, cmp.Diff(out, again))
			}
		}
		from = to
	}
	if got, want := p.must("", "fleet", "export", "rows"), "deviceName,disabled\nDoor:1,true\ndoor_1,false\ndoor_2,false\n"; got != want {
		t.Errorf("without shadows: %q, want %q", got, want)
	}
}

func TestFleetListAndGet(t *testing.T) {
	eachKind(t, func(t *testing.T, p *person, _ int) {
		p.must("deviceName,version,reported,desired\na,3,\"{\"\"x\"\":1,\"\"y\"\":1}\",\"{\"\"x\"\":2}\"\n", "fleet", "import", "door")
		p.must("deviceName,disabled\nb,true\n", "fleet", "import", "door")

		lines := strings.Split(p.must("", "fleet", "list", "door"), "\n")
		if fields := strings.Fields(lines[0]); !cmp.Equal(fields, []string{"DEVICE", "DISABLED", "VERSION", "CHANGED"}) {
			t.Errorf("the heading is %q", fields)
		}
		if fields := strings.Fields(lines[2]); !cmp.Equal(fields, []string{"b", "true", "0", "-"}) {
			t.Errorf("the second device is %q", fields)
		}
		if got, want := p.must("", "fleet", "list", "door", "-o", "json", "--filter", "b"), `{"deviceName":"b","disabled":true,"version":0,"timestamp":0}`+"\n"; got != want {
			t.Errorf("as JSON it is %q, want %q", got, want)
		}

		shown := p.must("", "fleet", "get", "door", "a")
		for _, want := range []string{"Product:    door (ABCDE12345)\n", "Disabled:   false\n", "Version:    3\n", `Reported:   {"x":1,"y":1}` + "\n", `Delta:      {"x":2}` + "\n"} {
			if !strings.Contains(shown, want) {
				t.Errorf("want %q in\n%s", want, shown)
			}
		}
		json := strings.Join(strings.Fields(p.must("", "fleet", "get", "door", "a", "-o", "json")), "")
		for _, want := range []string{`"deviceName":"a","productID":"ABCDE12345","disabled":false,"version":3,`, `"state":{"reported":{"x":1,"y":1},"desired":{"x":2},"delta":{"x":2}}`} {
			if !strings.Contains(json, want) {
				t.Errorf("want %s in\n%s", want, json)
			}
		}
		p.must(`{"deviceName":"c","reported":{"u":"a<b&c>"}}`+"\n", "fleet", "import", "door")
		for _, output := range []string{"table", "json"} {
			if shown := p.must("", "fleet", "get", "door", "c", "-o", output); !strings.Contains(shown, `"a<b&c>"`) {
				t.Errorf("as %s, want the text as it was written in\n%s", output, shown)
			}
		}
	})
}

// Each mistake is told in one line, which says what it is and what would be right.
func TestFleetMistakes(t *testing.T) {
	p := newPerson(t)
	server := pgtest.Start(t)
	database := server.Database(t)
	p.product("door", testobj.ProductID, "")
	p.product("empty", "EMPTY", database)
	p.product("denied", "DENIED", strings.Replace(database, pgtest.User+":", "somebody:", 1))
	p.product("unreadable", "UNREADABLE", "postgres://a:"+pgtest.Password+"%zz@x/")
	in := file(t, "deviceName\na\n")
	for _, tt := range []struct {
		args []string
		want string // part of it
	}{
		{[]string{"import", "gate", "-f", in}, `there is no Product "gate" in namespace "` + p.namespace + `"; there are denied, door, empty, unreadable`},
		{[]string{"import", testobj.ProductID, "-f", in}, `that is a product ID, and its Product is named "door"`},
		{[]string{"list", "door", "-n", "nowhere"}, `there is no Product "door" in namespace "nowhere"; is it another namespace (-n)?`},
		{[]string{"import", "door", "-f", "/nowhere"}, "-f: open /nowhere: no such file or directory"},
		{[]string{"import", "door", "-f", file(t, "name\na\n")}, `the header, line 1: column 1, "name", is none of deviceName, disabled, version, reported, desired`},
		{[]string{"import", "door", "-f", file(t, "\xFF\xFEd\x00")}, "the file is UTF-16 and must be UTF-8: convert it (iconv -f UTF-16LE -t UTF-8 FILE)"},
		{[]string{"import", "door", "--format", "xml"}, "--format=xml: must be csv or ndjson"},
		{[]string{"export", "door", "--format", ""}, "--format=: must be csv or ndjson"},
		{[]string{"list", "door", "-o", "yaml"}, "-o yaml: must be table, name, json"},
		{[]string{"list", "door", "--filter", "("}, "--filter=(: it is no regular expression in RE2 syntax: "},
		{[]string{"get", "door", "a"}, `there is no device "a" in Product "door"`},
		{[]string{"get", "empty", "a"}, `product "empty", spec.fleet.postgres.secretRef: open the database of Secret "empty-database": opening the database: the tables of the database have version 0`},
		{[]string{"list", "denied"}, `product "denied", spec.fleet.postgres.secretRef: open the database of Secret "denied-database": `},
		{[]string{"list", "unreadable"}, "DATABASE_URL: it cannot be read; are user and password percent-encoded?"},
		{[]string{"list", "door", "--context", "other"}, `context "other" does not exist`},
		{[]string{"list", "door", "--kubeconfig", "/nowhere"}, "find the API server: stat /nowhere"},
	} {
		out, _, fault := p.call(t.Context(), strings.NewReader(""), append([]string{"fleet"}, tt.args...)...)
		if !strings.Contains(fault, tt.want) || strings.Contains(fault, "\n") || out != "" {
			t.Errorf("%v: said %q, ended with %q; want %q", tt.args, out, fault, tt.want)
		}
	}
	// Checking needs no tables and makes none; importing makes them.
	if got, want := p.must("", "fleet", "import", "empty", "-f", in, "--dry-run"), "1 would be added, 0 updated, 0 unchanged, 0 bad lines; nothing was written\n"; got != want {
		t.Errorf("a dry run without tables says %q, want %q", got, want)
	}
	if _, _, fault := p.call(t.Context(), nil, "fleet", "list", "empty"); !strings.Contains(fault, "version 0") {
		t.Errorf("after a dry run: %q", fault)
	}
	p.must("", "fleet", "import", "empty", "-f", in)
	if got := p.must("", "fleet", "list", "empty", "-o", "name"); got != "a\n" {
		t.Errorf("after the import there are %q", got)
	}
}

// A list that fails before its first row leaves nothing that looks like an empty one, and
// one that fails later says so.
func TestRowsFinish(t *testing.T) {
	own := errors.New("the database is gone")
	for _, output := range []string{outputTable, outputCSV, outputJSON, outputName} {
		for n := range 3 {
			var text strings.Builder
			r := newRows(&text, output, "DEVICE")
			for range n {
				if err := r.write(listedDevice{Name: "Q"}, "Q"); err != nil {
					t.Fatal(err)
				}
			}
			err := r.finish(own)
			if early := strings.HasPrefix(fmt.Sprint(err), fmt.Sprintf("ended early, after %d rows", n)); !errors.Is(err, own) || early != (n > 0) {
				t.Errorf("%s, %d rows: error %v", output, n, err)
			}
			if rows := strings.Count(text.String(), "Q"); rows != n || n == 0 && text.String() != "" {
				t.Errorf("%s, %d rows: %q", output, n, text.String())
			}
		}
	}
}

func TestProgress(t *testing.T) {
	clock := testingclock.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	pass := func(d time.Duration) { clock.SetTime(clock.Now().Add(d)) }
	done := func(good, bad, bytes int64) transfer.Progress {
		return transfer.Progress{Summary: transfer.Summary{Added: good}, Bad: bad, Bytes: bytes, Line: good + bad + 1}
	}
	var text strings.Builder
	p := newProgress(&text, clock, 1000)
	p.show(done(1, 0, 10))
	pass(lineEvery)
	p.show(done(500, 1, 500))
	p.show(done(600, 1, 600))
	p.bad(&devicefile.LineError{Line: 7, Err: io.ErrUnexpectedEOF})
	p.end(done(1000, 1, 1000))
	if want := " 50%: 500 devices, 1 bad lines, 100/s\nline 7: unexpected EOF\n"; text.String() != want {
		t.Errorf("in a file it says\n%swant\n%s", text.String(), want)
	}

	text.Reset()
	p = newProgress(&text, clock, 1000)
	p.terminal = true
	pass(barEvery)
	p.show(done(500, 0, 500))
	p.bad(&devicefile.LineError{Line: 7, Err: io.ErrUnexpectedEOF})
	p.end(done(1000, 1, 1000))
	if want := "\r\x1b[K███████████████░░░░░░░░░░░░░░░  50% 500 devices, 0 bad lines, 2500/s\r\x1b[Kline 7: unexpected EOF\n\r\x1b[K"; text.String() != want {
		t.Errorf("on a terminal it says %q, want %q", text.String(), want)
	}

	text.Reset()
	p = newProgress(&text, clock, 0)
	pass(lineEvery)
	p.show(done(500, 0, 500))
	if want := "line 501: 500 devices, 0 bad lines, 100/s\n"; text.String() != want {
		t.Errorf("without a size it says %q, want %q", text.String(), want)
	}
}
