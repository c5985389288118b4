package e2e

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/internal/testobj"
)

const (
	churnDevices = 13_000
	churnWindow  = 100
	// churnAhead is more than the manager has read of the names after the last device
	// that it has sent a message: the rest of a page, and another one, of 4,096 at most.
	churnAhead = 8500
)

// churnMoments are how many acknowledgements the manager has got when it is held up
// and devices change.
var churnMoments = []int{600, 2136, 3672}

// How often a device is to be served.
type fate int

const (
	never fate = iota
	once
	atMostOnce
)

// change is what happens to every tenth device of a place; the value is the last digit
// of their numbers.
type change int

const (
	removed  change = 0
	disabled change = 1
	again    change = 2 // removed, and added again
	added    change = 3 // a new one with a similar name
	enabled  change = 7 // all with this digit are disabled in the beginning
)

// Devices are added, removed, disabled and enabled by others while a task runs, at
// three moments, each time of devices that have been served already, that have been
// read and not served, and that have not been read. A device that is there from the
// beginning to the end is served exactly once, whatever happens beside it; no device
// is served twice; and messages, results, shadows and counts say the same.
func TestDevicesChangeDuringATask(t *testing.T) {
	server := pgtest.Start(t)
	database := server.Database(t)
	for kind, build := range map[v1alpha1.TaskType]func(*testobj.BatchTaskBuilder) *testobj.BatchTaskBuilder{
		v1alpha1.TaskTypePublishMessage: func(b *testobj.BatchTaskBuilder) *testobj.BatchTaskBuilder { return b.Publish("event", "close") },
		v1alpha1.TaskTypeUpdateShadow:   func(b *testobj.BatchTaskBuilder) *testobj.BatchTaskBuilder { return b.UpdateShadow(`{"state":"open"}`) },
	} {
		t.Run(string(kind), func(t *testing.T) {
			c := newChurn(t, database)
			broker := mqtttest.StartMosquitto(t)
			tap := newTap(t, broker.URL())
			tap.letPass(0)
			startManager(t, tap.url(), fmt.Sprintf("--publish-window=%d", churnWindow), noResend)
			c.ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady, "")
			c.create(build(c.task("all")).Filter("^d-").Obj())
			for _, at := range churnMoments {
				tap.letPass(at)
				tap.await(t, at)
				c.changeAll(c.reached(tap))
			}
			tap.letAllPass()
			task := c.finished("all")

			served := c.served(tap)
			c.wantFates(served)
			n := int64(len(served))
			wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: n, Succeeded: n})
			c.wantResultsOf("all", served)
			if kind == v1alpha1.TaskTypeUpdateShadow {
				c.wantRaised(served)
			}
		})
	}
}

// churn is a site whose devices change.
type churn struct {
	*dbSite
	sql   *pgx.Conn
	fates map[string]fate // of the devices that change; all others are served once
	fresh map[string]bool // those added again after they were served
	// unsure are those added again that had been read: their shadows may have been
	// raised before, or after.
	unsure map[string]bool
}

func newChurn(t *testing.T, database string) *churn {
	t.Helper()
	c := &churn{
		dbSite: newDBSite(t, database, churnDevices), sql: pgtest.Connect(t, database),
		fates: map[string]fate{}, fresh: map[string]bool{}, unsure: map[string]bool{},
	}
	all := place{0, churnDevices}
	c.exec(`UPDATE batchtask_device SET disabled = true`+these, all.devices(enabled))
	for _, name := range all.devices(enabled) {
		c.fates[name] = never
	}
	c.add([]string{"e-no-match"})
	c.fates["e-no-match"] = never
	return c
}

// served is how often each device was sent a message.
func (c *churn) served(tap *tap) map[string]int {
	published, _ := tap.evidence()
	served := map[string]int{}
	for topic, times := range published {
		device := strings.TrimPrefix(strings.TrimPrefix(topic, "$shadow/operation/result/"), c.product+"/")
		served[strings.TrimSuffix(device, "/event")] += times
	}
	return served
}

// reached is the number of the last device that was sent a message, cut to tens.
func (c *churn) reached(tap *tap) int {
	c.t.Helper()
	last := slices.Max(slices.Collect(maps.Keys(c.served(tap))))
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(last, "d-"), "-new"))
	if err != nil {
		c.t.Fatal(err)
	}
	return n - n%10
}

// place is a part of the fleet: the numbers of its devices.
type place struct{ from, to int }

// devices are those of a place to which this happens.
func (p place) devices(what change) []string {
	var list []string
	for i := p.from + int(what); i < p.to; i += 10 {
		name := fmt.Sprintf("d-%05d", i)
		if what == added {
			name += "-new"
		}
		list = append(list, name)
	}
	return list
}

// these selects devices by their names.
const these = ` WHERE namespace = $1 AND product_id = $2 AND device_name = ANY($3)`

// changeAll makes all changes, each in the way somebody would: with SQL, the command
// line, and the store.
//
// The manager may yet send messages to a window of devices after the one reached, has
// the results of all that are a window before it, and has read no more than two pages of
// names beyond that. One in ten of the numbers is of a disabled device.
func (c *churn) changeAll(reached int) {
	c.t.Helper()
	file := "deviceName,disabled\n"
	for _, part := range []struct {
		place
		fates map[change]fate
	}{
		{place{reached - 300, reached - 200}, map[change]fate{removed: once, disabled: once, again: once, enabled: never, added: never}},
		{place{reached + 200, reached + 300}, map[change]fate{removed: atMostOnce, disabled: atMostOnce, again: once, enabled: atMostOnce, added: atMostOnce}},
		{place{reached + churnAhead, reached + churnAhead + 100}, map[change]fate{removed: never, disabled: never, again: once, enabled: once, added: once}},
	} {
		c.exec(`DELETE FROM batchtask_device`+these, slices.Concat(part.devices(removed), part.devices(again)))
		c.exec(`UPDATE batchtask_device SET disabled = true`+these, part.devices(disabled))
		c.add(part.devices(again))
		for _, name := range slices.Concat(part.devices(enabled), part.devices(added)) {
			file += name + ",false\n"
		}
		for what, fate := range part.fates {
			for _, name := range part.devices(what) {
				c.fates[name] = fate
				c.fresh[name] = what == again && part.to < reached
				c.unsure[name] = what == again && part.to > reached && part.to < reached+churnAhead
			}
		}
	}
	if got := c.batchtask(file, "fleet", "import", "p"); !strings.HasPrefix(got, "30 added, 30 updated, 0 unchanged, 0 bad lines") {
		c.t.Fatalf("the import says %q", got)
	}
}

// exec changes devices by SQL, all of which must be there.
func (c *churn) exec(sql string, names []string) {
	c.t.Helper()
	tag, err := c.sql.Exec(c.t.Context(), sql, c.namespace, c.product, names)
	if err != nil || tag.RowsAffected() != int64(len(names)) {
		c.t.Fatalf("%s: %d rows of %d, %v", sql, tag.RowsAffected(), len(names), err)
	}
}

// add adds devices by the store.
func (c *churn) add(names []string) {
	c.t.Helper()
	if sum, err := c.store.Import(c.t.Context(), c.fleet(), rowsOf(names)); err != nil || sum.Added != int64(len(names)) {
		c.t.Fatalf("import of %d devices: %+v, %v", len(names), sum, err)
	}
}

// wantFates checks how often each device was served.
func (c *churn) wantFates(served map[string]int) {
	c.t.Helper()
	want := maps.Clone(c.fates)
	for _, name := range names(churnDevices) {
		if _, changed := want[name]; !changed {
			want[name] = once
		}
	}
	for name, fate := range want {
		if times := served[name]; times > 1 || fate != atMostOnce && times != int(fate) {
			c.t.Errorf("device %s was served %d times", name, times)
		}
	}
	for name := range served {
		if _, known := want[name]; !known {
			c.t.Errorf("a device %s was served", name)
		}
	}
}

// wantResultsOf checks that exactly the devices that were served have a result.
func (c *churn) wantResultsOf(task string, served map[string]int) {
	c.t.Helper()
	lines, err := csv.NewReader(strings.NewReader(c.batchtask("", "task", "results", task, "-o", "csv"))).ReadAll()
	if err != nil {
		c.t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, line := range lines[1:] {
		if seen[line[0]] || served[line[0]] == 0 || line[1] != "Succeeded" {
			c.t.Errorf("result %q of a device that was served %d times", line, served[line[0]])
		}
		seen[line[0]] = true
	}
	if len(seen) != len(served) {
		c.t.Errorf("%d devices have a result, and %d were served", len(seen), len(served))
	}
}

// wantRaised checks that exactly the shadows of the devices that were served have been
// raised, once.
func (c *churn) wantRaised(served map[string]int) {
	c.t.Helper()
	for d, err := range c.store.Export(c.t.Context(), c.fleet()) {
		if err != nil {
			c.t.Fatal(err)
		}
		want := int64(served[d.Name])
		if c.fresh[d.Name] {
			want = 0
		}
		if c.unsure[d.Name] && d.Shadow.Version == 0 {
			continue
		}
		if d.Shadow.Version != want {
			c.t.Errorf("device %s has version %d, want %d", d.Name, d.Shadow.Version, want)
		}
	}
}

// batchtask runs the program in the site's namespace and returns what it writes.
func (s *site) batchtask(input string, args ...string) string {
	s.t.Helper()
	path, err := program()
	if err != nil {
		s.t.Fatal(err)
	}
	kubeconfig := filepath.Join(s.t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, testenv.Start(s.t).KubeConfig, 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(s.t.Context(), path, append(args, "--kubeconfig="+kubeconfig, "--namespace="+s.namespace)...)
	var complaint bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &complaint
	output, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("batchtask %v: %v\n%s", args, err, complaint.Bytes())
	}
	return string(output)
}

// rowsOf returns new devices.
func rowsOf(names []string) iter.Seq2[postgres.Device, error] {
	return func(yield func(postgres.Device, error) bool) {
		for _, name := range names {
			if !yield(postgres.Device{Name: name}, nil) {
				return
			}
		}
	}
}
