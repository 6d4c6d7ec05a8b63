{{- /* A size of the settings, such as 4GiB, in MiB. */}}
{{- define "flightcache.mib" -}}
{{- $mib := get (dict "MiB" 1 "GiB" 1024 "TiB" 1048576) (regexFind "[MGT]iB$" .) -}}
{{- mul (regexFind "^[0-9]+" . | int) $mib -}}
{{- end }}

{{- /* Memory of a node in MiB: all that the settings allow, and what runs around it. The reserve's default is the server's. */}}
{{- define "flightcache.memory" -}}
{{- $capacity := include "flightcache.mib" .Values.settings.capacity | int -}}
{{- $reserve := max 256 (div $capacity 4) -}}
{{- with .Values.settings.reserve }}{{ $reserve = include "flightcache.mib" . | int }}{{ end -}}
{{- $sum := add $capacity $reserve (include "flightcache.mib" .Values.settings.footer_capacity | int) -}}
{{- add $sum (include "flightcache.mib" .Values.settings.sql_memory | int) (include "flightcache.mib" .Values.resources.overhead | int) -}}
{{- end }}
