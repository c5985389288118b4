package main

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// To write a bare task costs what a BatchTask costs: only the names differ.
func TestBareDefinition(t *testing.T) {
	t.Chdir("../..")
	bare, err := bareDefinition()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(taskDefinition)
	if err != nil {
		t.Fatal(err)
	}
	task := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, task); err != nil {
		t.Fatal(err)
	}
	if bare.Spec.Group == task.Spec.Group || bare.Name == task.Name {
		t.Errorf("it is %s in group %s: the webhooks and the controllers know it", bare.Name, bare.Spec.Group)
	}
	bare.ObjectMeta, bare.Spec.Group, bare.Spec.Names = task.ObjectMeta, task.Spec.Group, task.Spec.Names
	if diff := cmp.Diff(task, bare); diff != "" {
		t.Errorf("besides its names it differs (-task +bare):\n%s", diff)
	}
}
