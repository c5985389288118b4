package devicefile

import (
	"bytes"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/shadow"
)

var now = time.UnixMilli(1_700_000_000_000)

// read returns one line for each device and each bad line.
func read(t testing.TB, text string, format Format) (got []string) {
	t.Helper()
	r, err := NewReader(strings.NewReader(text), format, now)
	if err != nil {
		return []string{err.Error()}
	}
	for {
		d, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			if _, ok := errors.AsType[*LineError](err); !ok {
				t.Fatalf("error %v is no *LineError", err)
			}
			got = append(got, err.Error())
			continue
		}
		line := fmt.Sprint(d.Name, " ", d.Disabled)
		if d.Shadow.Version > 0 {
			line += fmt.Sprintf(" v%d reported=%s desired=%s", d.Shadow.Version, d.Shadow.Reported, d.Shadow.Desired)
		}
		got = append(got, line)
	}
}

func TestReader(t *testing.T) {
	const name = "deviceName: a name is 1 to 48 letters, digits, ':', '_' and '-'"
	tests := map[string]struct {
		text   string
		format Format
		want   []string
	}{
		"names alone":         {text: "deviceName\na\nb\n", want: []string{"a false", "b false"}},
		"no end of the last":  {text: "deviceName\na", want: []string{"a false"}},
		"from another system": {text: "\uFEFFdeviceName,disabled\r\na,TRUE\r\n\r\nb,false\r\n", want: []string{"a true", "b false"}},
		"quotes":              {text: "disabled,deviceName\n\"true\",\"a\"\n,b\n", want: []string{"a true", "b false"}},
		"shadows":             {text: "deviceName,version,reported,desired\na,7,\"{\"\"n\"\": 12345678901234567890}\",\nb,,,\"{\"\"s\"\":\"\"x,y\"\"}\"\nc,3,,\n", want: []string{`a false v7 reported={"n":12345678901234567890} desired=`, `b false v1 reported= desired={"s":"x,y"}`, "c false v3 reported= desired="}},
		"bad lines and between": {text: "deviceName,disabled\na/b,\na,perhaps\nb,\n\"c,\nd,,\ne\"f,\n\"g\"h,\ni,true\n,\n", want: []string{
			"line 2: " + name, `line 3: device "a": disabled: it is neither true nor false`, "b false",
			"line 5: a quoted field does not end on its line; a device is one line, so write JSON without line ends",
			"line 6: it has 3 fields, and the header has 2; quote fields that hold a comma",
			`line 7: a quote (") stands in a field that does not begin with one; write "a ""quoted"" field"`,
			`line 8: after the closing quote (") of a field comes neither a comma nor the end of the line`,
			"i true", "line 10: " + name,
		}},
		"a device twice": {text: "deviceName\na\nb\na\nA\n", want: []string{"a false", "b false", `line 4: device "a": it stands on line 2 already`, "A false"}},
		"bad documents": {text: "deviceName,version,reported\na,,\"[1]\"\nb,,\"{\"\"a\"\":1,\"\"a\"\":2}\"\nc,-1,\nd,1.5,\ne,,x\nf,,\"{\"\"a\"\":{\"\"a\"\":{\"\"a\"\":{\"\"a\"\":{\"\"a\"\":{}}}}}}\"\n", want: []string{
			`line 2: device "a": reported: not a JSON object: it is an array`,
			`line 3: device "b": reported: illegal key at a (byte 10): the key stands twice in one object`,
			`line 4: device "c": version: it is no whole number from 0 to 9007199254740991`,
			`line 5: device "d": version: it is no whole number from 0 to 9007199254740991`,
			`line 6: device "e": reported: not a JSON value (byte 1): invalid character 'x' looking for beginning of value`,
			`line 7: device "f": reported: more than 5 levels deep at a.a.a.a.a (byte 26)`,
		}},
		"too long a line, and the next": {text: "deviceName\n" + strings.Repeat("x", maxLineBytes+1) + "\na\n", want: []string{"line 2: the line is longer than 524288 bytes", "a false"}},
		"no UTF-8":                      {text: "deviceName\na\xff\n", want: []string{"line 2: it is not UTF-8"}},
		"unknown column":                {text: "deviceName,colour\n", want: []string{`the header, line 1: column 2, "colour", is none of deviceName, disabled, version, reported, desired`}},
		"column twice":                  {text: "deviceName,deviceName\n", want: []string{`the header, line 1: column "deviceName" stands there twice`}},
		"no header":                     {text: "disabled\n", want: []string{`the header, line 1: there is no column deviceName; a file begins with a line such as "deviceName,disabled"`}},
		"empty file":                    {text: "", want: []string{"the file is empty"}},

		"blank lines before":          {text: "\n \t\r\n\ndeviceName,disabled\n  \na,\n\t\n", want: []string{"a false"}},
		"blank lines before objects":  {text: "\n\n  {\"deviceName\":\"a\"}\n   \n\t\n\t{\"deviceName\":\"b\"}", want: []string{"a false", "b false"}},
		"after a byte order mark":     {text: "\uFEFF\n {\"deviceName\":\"a\"}\n", want: []string{"a false"}},
		"white space of a given kind": {text: "\n  {\"deviceName\":\"a\"}\n", format: NDJSON, want: []string{"a false"}},
		"more of it than is buffered": {text: strings.Repeat(" ", 70<<10) + strings.Repeat("\n", 70<<10) + "{\"deviceName\":\"a\"}\nx\n", want: []string{"a false", "line 71682: it is no JSON: invalid character 'x' looking for beginning of value"}},
		"indented rows":               {text: "  deviceName,version\n  a,1\n", want: []string{"a false v1 reported= desired="}},
		"a header further down":       {text: "\n\ncolour\n", want: []string{`the header, line 3: column 1, "colour", is none of deviceName, disabled, version, reported, desired`}},
		"nothing but blanks":          {text: "\n  \n ", want: []string{"the file is empty"}},
		"an array":                    {text: ` [{"deviceName":"a"}]`, want: []string{"the file is a JSON array: write one object a line (jq -c '.[]' FILE)"}},
		"nothing at all, as objects":  {text: " \n", format: NDJSON},
		"null": {text: `{"deviceName":"a","disabled":null,"version":null,"reported":null,"desired":null}` + "\n" + `{"deviceName":"b","version":7,"reported":{"x":1},"desired":null}` + "\n" +
			`{"deviceName":null}` + "\n" + `{"deviceName":"c","disabled":null,"disabled":true}`, want: []string{
			"a false", `b false v7 reported={"x":1} desired=`,
			"line 3: deviceName: it is not a string", `line 4: device "c": the key "disabled" stands there twice`,
		}},
		"versions without room": {text: "deviceName,version\na,9223372036854775807\nb,9007199254740992\nc,9007199254740991\n", want: []string{
			`line 2: device "a": version: it is no whole number from 0 to 9007199254740991`,
			`line 3: device "b": version: it is no whole number from 0 to 9007199254740991`, "c false v9007199254740991 reported= desired=",
		}},
		"a workbook": {text: "PK\x03\x04\x14\x00\x06\x00", want: []string{"the file is no text: it must be CSV or NDJSON in UTF-8, neither compressed nor a workbook"}},

		"objects": {text: `{"deviceName":"a"}` + "\n\n" + `{"reported": {"n": 1.0}, "deviceName": "\u0062", "disabled": true, "version": 4}` + "\n", want: []string{"a false", `b true v4 reported={"n":1.0} desired=`}},
		"bad objects": {format: NDJSON, text: strings.Join([]string{
			`{"deviceName":"a","deviceName":"b"}`, `{"deviceName":"a","colour":1}`, `{"devicename":"a"}`, `{"disabled":true}`,
			`{"deviceName":"a"} {}`, `[1]`, `{"deviceName":1}`, `{"deviceName":"a","disabled":"true"}`, `{"deviceName":"a","reported":nil}`,
			`{"deviceName":"a","reported":{"":1}}`, `{"deviceName":"a","version":1e3}`, `{"deviceName":"a"`, `{"deviceName":""}`, `{"deviceName":"\ud800"}`, "{\"deviceName\":\"\xff\"}",
		}, "\n"), want: []string{
			`line 1: device "a": the key "deviceName" stands there twice`,
			`line 2: device "a": the key "colour" is none of deviceName, disabled, version, reported, desired`,
			`line 3: the key "devicename" is none of deviceName, disabled, version, reported, desired`,
			"line 4: deviceName is missing",
			"line 5: it is no JSON: invalid character '{' after top-level value",
			"line 6: it is no JSON object", "line 7: deviceName: it is not a string",
			`line 8: device "a": disabled: it is not true or false`, "line 9: it is no JSON: invalid character 'i' in literal null (expecting 'u')",
			`line 10: device "a": reported: illegal key (byte 3): a key is empty`,
			`line 11: device "a": version: it is no whole number from 0 to 9007199254740991`,
			"line 12: it is no JSON: unexpected end of JSON input", "line 13: " + name, "line 14: " + name, "line 15: it is not UTF-8",
		}},
	}
	for title, tt := range tests {
		t.Run(title, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, read(t, tt.text, tt.format)); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
		})
	}
}

// A file in UTF-16 is told what it is, with and without a byte order mark.
func TestReaderUTF16(t *testing.T) {
	for _, text := range []string{"deviceName,disabled\r\na,\r\n", `{"deviceName":"a"}`, "\n"} {
		for order, endian := range map[string]binary.AppendByteOrder{"UTF-16LE": binary.LittleEndian, "UTF-16BE": binary.BigEndian} {
			for _, mark := range []string{"", "\uFEFF"} {
				var file []byte
				for _, unit := range utf16.Encode([]rune(mark + text)) {
					file = endian.AppendUint16(file, unit)
				}
				for _, format := range []Format{"", CSV, NDJSON} {
					got := read(t, string(file), format)
					if len(got) != 1 || !strings.Contains(got[0], "iconv -f "+order+" -t UTF-8") {
						t.Errorf("%q as %q: %q, want one error that says how to convert it", file, format, got)
					}
				}
			}
		}
	}
}

// Documents that come again are read as before, also once more have come than are
// remembered; and a bad one is bad again.
func TestReaderKnowsDocuments(t *testing.T) {
	var text strings.Builder
	var want []string
	text.WriteString("deviceName,version,reported,desired\n")
	line := 1
	add := func(rest, result string) {
		line++
		fmt.Fprintf(&text, "d%d,%s\n", line, rest)
		want = append(want, fmt.Sprintf(result, line))
	}
	for i := range mostKnown + 5 {
		add(fmt.Sprintf(`1,"{""b"":%d,""a"":{}}",`, i), fmt.Sprintf(`d%%d false v1 reported={"a":{},"b":%d} desired=`, i))
	}
	for range 2 {
		add(`7,"{""b"":3, ""a"":{}}",`, `d%d false v7 reported={"a":{},"b":3} desired=`)
		add(`,,"{""b"":3, ""a"":{}}"`, `d%d false v1 reported= desired={"a":{},"b":3}`)
		add(`,{},`, "d%d false v1 reported= desired=")
		add(`,,{}`, "d%d false v1 reported= desired=")
		add(`,,`, "d%d false")
		add(`,x,`, `line %[1]d: device "d%[1]d": reported: not a JSON value (byte 1): invalid character 'x' looking for beginning of value`)
	}
	if diff := cmp.Diff(want, read(t, text.String(), "")); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
}

// What is wrong with the file itself is no bad line.
func TestReaderPassesErrorsOn(t *testing.T) {
	own := errors.New("the disk is gone")
	r, err := NewReader(io.MultiReader(strings.NewReader("deviceName\na\nb"), failing{own}), "", now)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := r.Next(); err != nil || d.Name != "a" {
		t.Fatalf("device %q, error %v; want a", d.Name, err)
	}
	if _, err := r.Next(); !errors.Is(err, own) {
		t.Errorf("error %v, want %v: half of a line is no device", err, own)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Whatever is in a file, each line is a device or bad, and a device that is written
// is read again as it is.
func FuzzReader(f *testing.F) {
	for _, text := range []string{
		"deviceName,disabled,version,reported,desired\na,true,1,\"{\"\"a\"\":[1,null]}\",{}\n\n\"b\",,,,\n",
		`{"deviceName":"a","reported":{"a":{"b":1}},"version":9}` + "\r\n{}\n",
		"\uFEFFdeviceName\r\na\r\n\"a",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := NewReader(strings.NewReader(text), "", now)
		if err != nil {
			return
		}
		for {
			d, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				if _, ok := errors.AsType[*LineError](err); !ok {
					t.Fatalf("error %v is no *LineError", err)
				}
				continue
			}
			for _, format := range []Format{CSV, NDJSON} {
				again(t, d, format)
			}
		}
		if want := int64(strings.Count(text, "\n")); r.Line() < want || r.Line() > want+1 || r.Bytes() != int64(len(text)) {
			t.Errorf("%d lines and %d bytes were read, of %d and %d", r.Line(), r.Bytes(), want, len(text))
		}
	})
}

// again writes a device and reads it.
func again(t *testing.T, d Device, format Format) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, format, true)
	if err == nil {
		err = errors.Join(w.Write(d), w.Flush())
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&b, "", now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Next()
	if diff := cmp.Diff(d, got); err != nil || diff != "" {
		t.Errorf("written as %s and read again: error %v (-want +got):\n%s", format, err, diff)
	}
}

// A line that this package takes, the standard library takes for the same fields.
func FuzzSplitCSV(f *testing.F) {
	for _, line := range []string{`a,b`, `"a""b",`, `"`, `a"`, ``, `,`, `"a"b`} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "\r\n") {
			return
		}
		got, err := splitCSV(line)
		reader := csv.NewReader(strings.NewReader(line + "\n"))
		want, wantErr := reader.Read()
		if errors.Is(wantErr, io.EOF) { // it passes over an empty line
			want, wantErr = []string{""}, nil
		}
		if (err == nil) != (wantErr == nil) || err == nil && !cmp.Equal(want, got) {
			t.Errorf("%q: %q, %v; want %q, %v", line, got, err, want, wantErr)
		}
	})
}

// A document that no import would take ends an export with the name of its device.
func TestWriterRefuses(t *testing.T) {
	bad := Device{Name: "a", Shadow: shadow.Stored{Version: 1, Desired: "{\n\"a\":"}}
	for _, format := range []Format{CSV, NDJSON} {
		var b bytes.Buffer
		w, err := NewWriter(&b, format, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(bad); err == nil || !strings.Contains(err.Error(), `device "a": the stored desired part is no JSON`) {
			t.Errorf("as %s: error %v, want one that names the device", format, err)
		}
		if w, err = NewWriter(&b, format, false); err == nil {
			err = w.Write(bad)
		}
		if err != nil {
			t.Errorf("as %s, without shadows: %v", format, err)
		}
	}
}
